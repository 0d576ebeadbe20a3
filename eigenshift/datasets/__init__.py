"""Files in their original schemas -> one common record (`schemas.SAMPLES`)."""
