"""What leaves a deployment after it was proven to be elsewhere, and how it comes back."""
