"""The one-way channels between parts: the only room that sends or receives latents."""
