"""One look-up in a static model: a table of vectors, one per token. The door to safetensors."""
