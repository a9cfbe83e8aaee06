"""Answering requests over HTTP as OpenAI's completions API does, many at once. Needs the extra `serve`."""
