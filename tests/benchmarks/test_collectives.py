"""Collectives read from HLO text, written by hand as XLA prints it for CPUs, GPUs and TPUs."""

import pytest

from benchmarks.collectives import Array, collectives

CPU = """\
HloModule jit_train_step, is_scheduled=true, input_output_alias={ {0}: (0, {}, may-alias) }

%region_1.2 (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add.1 = f32[] add(%a, %b), metadata={op_name="jit(f)/psum"}
}

ENTRY %main.9 (p0: f32[2,4], p1: bf16[3]) -> f32[] {
  %psum.1 = f32[2,4]{1,0} all-reduce(%fusion.1), channel_id=1, replica_groups={{0,1}}, to_apply=%region_1.2, metadata={op_name="jit(f)/jvp(Net)/bn/psum" stack_frame_id=3}
  %all-reduce.9 = (f32[2,8]{1,0}, bf16[3]{0}, f32[]) all-reduce(%fusion.2, %p1, %fusion.3), channel_id=1, to_apply=%region_1.2, metadata={op_name="jit(f)/(a:b)"}
  %gte = f32[2,8]{1,0} get-tuple-element(%all-reduce.9), index=0
  ROOT %all_gather.6 = pred[8,32]{1,0} all-gather(%fusion.4), channel_id=1, dimensions={0}
}
"""


def test_operands_of_a_tuple_are_one_collective():
    first, second, third = collectives(CPU)
    assert first == ("all-reduce", (Array("f32", (2, 4)),), "jit(f)/jvp(Net)/bn/psum")
    assert first.nbytes == 32
    assert second.kind == "all-reduce" and second.op_name == "jit(f)/(a:b)"
    assert second.arrays == (Array("f32", (2, 8)), Array("bf16", (3,)), Array("f32", ()))
    assert second.nbytes == 64 + 6 + 4
    assert (third.kind, third.nbytes, third.op_name) == ("all-gather", 256, "")


def test_users_of_a_collective_and_names_that_look_like_one_do_not_count():
    text = """
  %all-reduce.1 = f32[4]{0} add(%x, %y)
  %fusion.1 = f32[4]{0} fusion(%all-reduce.1), kind=kLoop, calls=%fused_all-reduce
  %gte.1 = f32[4]{0} get-tuple-element(%all-reduce-start.2), index=1, metadata={op_name="all-reduce("}
"""
    assert collectives(text) == []


def test_asynchronous_pairs_count_once_with_their_result():
    """On GPUs the start of a gather puts out operand and result; the done the result alone."""
    text = """
  %ar-start.1 = f32[10]{0} all-reduce-start(%x), to_apply=%add, metadata={op_name="jit(f)/one"}
  %ag-start = (f32[2,4]{1,0}, f32[8,4]{1,0}) all-gather-start(f32[2,4]{1,0} %y), dimensions={0}
  %ar-start.2 = (f32[5]{0}, f32[6]{0}) all-reduce-start(%z, %w), metadata={op_name="jit(f)/two"}
  %ar-done.2 = (f32[5]{0}, f32[6]{0}) all-reduce-done((f32[5]{0}, f32[6]{0}) %ar-start.2)
  %ag-done = f32[8,4]{1,0} all-gather-done(%ag-start), metadata={op_name="jit(f)/gather"}
  ROOT %ar-done.1 = f32[10]{0} all-reduce-done(%ar-start.1)
"""
    found = collectives(text)
    assert [(c.kind, c.op_name, c.nbytes) for c in found] == [
        ("all-reduce", "jit(f)/two", 44),
        ("all-gather", "jit(f)/gather", 128),
        ("all-reduce", "jit(f)/one", 40),
    ]


def test_layouts_of_accelerators_and_small_types():
    text = """
  %a = f32[3,3,64,64]{3,2,1,0:T(8,128)S(1)} all-reduce(%x), to_apply=%add
  b = (s4[3]{0}, /*index=1*/f8e4m3fn[7]{0}, u32[<=4]{0}) reduce-scatter(x, y, z), to_apply=add
  %c = c64[2]{0} collective-permute(%x), source_target_pairs={{0,1}}
"""
    found = collectives(text)
    assert [(c.kind, c.nbytes) for c in found] == [
        ("all-reduce", 4 * 9 * 4096),
        ("reduce-scatter", 2 + 7 + 16),
        ("collective-permute", 16),
    ]


def test_unknown_dtype_is_an_error():
    (found,) = collectives("  %a = q7[3]{0} all-reduce(%x), to_apply=%add\n")
    with pytest.raises(ValueError, match="unknown HLO dtype 'q7'"):
        found.nbytes  # noqa: B018  a property that raises
