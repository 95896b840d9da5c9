"""Graph hypernetworks: encoders, decoder, files."""
