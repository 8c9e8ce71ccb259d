"""From images to batches: which images, which crops, resident or streamed, on which devices."""
