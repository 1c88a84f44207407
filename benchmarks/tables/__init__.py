"""The tables of the papers as data, and a command that trains their rows.

Command: python -m benchmarks.tables PAPER/NUMBER --config.data.root=DIR [--config.section.field=VALUE ...]
         [--rows=2,3] [--seeds=3] [--out=DIR] [--print] [--small] [--record]

Trains and evaluates the rows of a table one after another, such as those of mevit/1, MEViT's Table 1. Each row is a
config with the overrides of the row and the flags that are given. The same command goes on where it was stopped, and
does not run a finished row again, nor a row that is the same in another table. After each run it writes the paper's
table with the results beside the paper's figures to DIR/table.md, and the results to DIR/results.jsonl. Both hold every
finished row and seed in DIR. At the end it prints the table. DIR is runs/tables/PAPER-NUMBER by default.

--rows=2,3 takes these rows only, by their numbers in docs/papers/. --seeds=3 runs each row with the seeds 0, 1 and 2.
--print prints the commands of all runs, for a cluster, and runs nothing. Afterwards the command without --print
collects the results. --small trains the small form of the table on the motion clips of the demo. --record copies the
results to benchmarks/results/tables/ and writes the pages in docs/papers/.

python -m benchmarks.tables --list prints every row of every paper with its command, and whether the counts that the
paper prints are those of the model. --write counts all models again and writes the pages in docs/papers/.
"""
