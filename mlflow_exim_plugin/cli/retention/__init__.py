"""Commands by which data leaves a deployment, and comes back."""
