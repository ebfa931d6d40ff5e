"""A search from start to end in Python, in cells (VS Code, PyCharm and Jupytext open it as a notebook).

Or as a whole, in about a minute on one core: python studies/walkthrough.py
"""

# %% [markdown]
# # How wide should the layers of a small network be?
# A study is a file: the network, the data, a ceiling on the cost, how to train. `digits_mlp.py` is one.

# %%
import tempfile
from pathlib import Path

from widthsearch import launch, load

here = Path(__file__).parent
folder = Path(tempfile.mkdtemp(prefix="walkthrough-"))
storage = f"sqlite:///{folder / 'widthsearch.db'}"

# %% [markdown]
# ## Launch
# The same as `widthsearch launch studies/digits_mlp.py --rounds 1 ...` in a terminal. `workers=0` trains in
# this process; without it, Ray uses all cores. Stop it as you like: `widthsearch.resume()` goes on.

# %%
result = launch(here / "digits_mlp.py", storage=storage, rounds=1, replicas=2, seeds=2, workers=0)

# %% [markdown]
# ## Look
# A result has the names that `widthsearch show --json` prints. In a notebook, `result` alone shows the page.

# %%
print("recommended:", result.widths)
print("verdict:", result.verdict, "gain:", result.gain)
print("uniform widths at the same cost:", result.baseline["widths"])

# %%
frame = result.to_frame()  # one row per training, for pandas
print(frame.groupby("kind")["val_loss"].describe()[["count", "mean", "min"]])

# %%
figure = result.plot_prune_ratios()  # plotly; also plot_widths, plot_loss, plot_seeds, plot_architecture
(folder / "report.html").write_text(result.to_html(), encoding="utf-8")
print("the whole study as a page:", folder / "report.html")

# %% [markdown]
# ## Go on with the network
# Freshly initialised, for your own training script. `load` finds a study again, also while it runs elsewhere.

# %%
net = load("digits_mlp", storage).model()
print(net)
