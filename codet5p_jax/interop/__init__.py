"""The place of converters to and from Hugging Face; there are none yet."""
