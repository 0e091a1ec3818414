"""The benchmark as facts and pure functions; no engine, no LoadGen, no torch.

rules.py         rounds, benchmarks, targets: every constant with its source
orca.py          the OpenOrca pipeline, row for row what the reference gives
columns.py       the ten columns of a benchmark's frame
frames.py        how such a frame is made and written
dataset.py       load, verify and describe a dataset
synthetic.py     a dataset of the real lengths and no meaning, for rehearsals
tokenizer.py     text to ids and back, without torch
gguf_keys.py     what a GGUF file says of itself, a vocabulary among it
logs.py          LoadGen's summary and detail logs as typed records
accuracy_log.py  LoadGen's accuracy log as arrays
scoring.py       accuracy log to ROUGE, tokens per sample and findings
rouge.py         ROUGE-1/2/L, equal to rouge_score with its stemmer
late.py          what needs nltk or pandas, imported when it is used
"""

__all__: list[str] = []
