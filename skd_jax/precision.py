"""The precision of matrix products whose result is promised in float32."""

import jax

# By default a GPU rounds the factors of a float32 product to TF32 (10 bits of mantissa), a TPU to
# bfloat16 (7 bits). For a network's layers that is the usual bargain; in a loss or its targets it
# would be the very difference that is to be learnt: cosines over a temperature, Gram matrices that
# nearly agree, the k-th largest similarity. These products are small beside the network's.
EXACT = jax.lax.Precision.HIGHEST
