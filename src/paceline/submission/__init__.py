"""Run directories in, a checked submission out; no engine, no LoadGen.

system*.py       the description of a system: probed, given, merged; unknown stays unknown
matching.py      which runs make one result, and what differs when they do not
measurements.py  what was done to the weights
recipe.py        a run as it can be repeated
source_code.py   the code that ran
documents.py     what people read
certificates.py  a contest's four files an attempt
tree.py          a submission tree as files
package.py       the tarball, the same bytes for the same tree
submit.py        all of it, in order
check/           the checker of trees
"""

__all__: list[str] = []
