"""OCI images: references, registries and layouts in, verified bytes out."""
