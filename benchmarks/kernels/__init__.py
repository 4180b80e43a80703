"""One benchmark per kernel, under the kernel's own name; `harness` is what they share."""
