"""What a run says: one document, and its renderings."""
