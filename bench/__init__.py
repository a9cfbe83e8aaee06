"""Speed and memory against the stock Hugging Face GPT-Neo, in the same run: `make bench`."""
