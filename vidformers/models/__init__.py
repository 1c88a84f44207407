"""The models, one file for each paper or family. `registry` lists them and builds one by its name."""
