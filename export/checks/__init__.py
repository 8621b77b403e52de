"""What is compared with PyTorch before a bundle is written."""
