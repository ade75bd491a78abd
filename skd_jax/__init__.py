"""Self-knowledge distillation with Siamese representation learning for action recognition, in JAX."""
