"""Evaluates a checkpoint: python eval.py --checkpoint=runs/mine --data_dir=data --role=test --out=results

The same as `universeg evaluate`.
"""

import sys

from universeg_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
