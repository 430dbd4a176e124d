"""From chains on disk to padded batches of tensors."""
