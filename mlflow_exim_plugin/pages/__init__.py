"""What is looked at: pages, each one HTML file that fetches nothing, and pictures."""
