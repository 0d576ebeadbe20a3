"""What a patch changed and what it cost, with intervals."""
