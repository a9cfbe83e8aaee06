"""Operations on tensors: one lowering and one gradient each, where Mesh-TensorFlow composes from many."""
