# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 13 · Does it depend on the seed, or on the model?
#
# Notebook 12 says of one model, at one seed, that exact nullspace noise changes its output by rounding alone, and other
# noise of the same norm by a sizeable share. Is that also true at other seeds and of other models? Model and seed are
# varied. The control is the other noise. We measure the change of the logits relative to their norm. The smallest
# change under other noise, divided by the largest under exact noise, decides the question.
#
# The notebook also shows how any notebook becomes a sweep by a grid file of a few lines. The measurements of all jobs
# are one tidy table, and pivots, filters and plots are pandas and seaborn.
#
# ```sh
# nullpaper sweep sweeps/model_zoo.yaml --workers 2
# nullpaper report model_zoo --table 12_effect --over seed
# ```
#
# Takes one to two minutes at `cpu` on 2 cores; needs CIFAR-10, which is fetched once. A job that is finished is not run
# again.

# %% tags=["parameters"]
notebook: str = "notebooks/12_any_model.py"  # what each job runs
models: list = ["nullpaper_vit_cifar10", "vit_tiny_patch16_224"]  # the first trained, the second at random weights
seeds: list = [0, 1, 2]  # of images, noises and random weights
images: int = 4  # test images a job
sweep: str = ""  # read this finished sweep of notebook 12 over models and seeds instead

# %%
import seaborn as sns
import yaml

from nullpaper.workflow import figures, tables
from nullpaper.workflow.provenance import project_root
from nullpaper.workflow.sweep import plan_sweep, run_sweep
from nullpaper.workflow.workers import local_workers, share

figures.use_style()

# %% [markdown]
# ## A grid file, and its jobs
#
# `grid` crosses its lists, `zip` goes through them side by side, `fixed` holds in every job. The parameters of all jobs
# are checked before the first starts. On the command line the same is `nullpaper sweep GRID.yaml`, with `--dry-run` to
# list the jobs.

# %%
grid = {
    "notebook": str(project_root() / notebook),
    "profile": "cpu",
    "fixed": {"images": images},
    "grid": {"model": models, "seed": seeds},
}
if sweep:
    folder = tables.sweep_folder(sweep)
else:
    file = project_root() / "build" / "sweeps" / "13_models.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(grid, sort_keys=False))
    workers, threads = share(workers=None, threads=1, gpus=[])
    planned = plan_sweep(file, threads=threads)
    with local_workers(min(workers, len(planned.jobs))) as client:
        report = run_sweep(planned, client)
    folder = planned.folder
    assert not report.failed, str(report)

# %% [markdown]
# ## One tidy table
#
# The parameters of the jobs are columns beside the measurements, and each row names its job. `nullpaper report` writes
# the same table as Parquet and CSV.

# %%
effect = tables.collect(folder, "12_effect")
effect[["model", "seed", "noise", "norm", "change", "unchanged"]].head(8).style.hide(axis="index").format(precision=3)

# %% [markdown]
# **Pivot**: the mean over seeds, by model and noise.

# %%
effect.pivot_table(index="model", columns="noise", values="change", aggfunc="mean").style.format("{:.1e}")

# %% [markdown]
# **Filter**: the exact noises that change the logits by less than a thousandth, and how far they move the images.

# %%
exact = effect[effect["noise"].str.startswith("exact") & (effect["change"] < 1e-3)]
exact.groupby(["model", "noise"])["norm"].agg(["mean", "min", "max", "count"]).style.format(precision=2)

# %% [markdown]
# **Mean and interval** over the seeds (Student's t, 95 %): `tables.mean_over`, or `nullpaper report SWEEP --over seed`.

# %%
over_seeds = tables.mean_over(effect, "seed", by=["noise"])
figures.save_table(over_seeds, "13_over_seeds", caption="Noise of one norm on several models, over seeds.")
over_seeds[["model", "noise", "change", "change_low", "change_high", "n"]].style.hide(axis="index").format(precision=3)

# %% [markdown]
# **Plot**: one point for every run.

# %%
figure, axis = figures.subplots(height=2.2)
sns.stripplot(effect, x="change", y="noise", hue="model", dodge=True, jitter=False, alpha=0.7, ax=axis)
axis.set(
    xscale="log", xlabel="relative change of the logits", ylabel="", title=f"each of {effect['seed'].nunique()} seeds"
)
sns.move_legend(axis, "upper left", bbox_to_anchor=(1, 1), title="")
_ = figures.save_figure(figure, "13_changes")

# %% [markdown]
# ## The answer

# %%
from nullpaper.studies.verdicts import conclude

is_exact = effect["noise"].str.startswith("exact")
texts = [
    f"{model}: over {rows['seed'].nunique()} seeds, exact noise changes the logits by at most "
    f"{rows[is_exact]['change'].max():.1e} of their norm, other noise by at least "
    f"{rows[~is_exact]['change'].min():.1e}"
    for model, rows in effect.groupby("model", sort=False)
]
print("\n".join(texts))
gap = effect[~is_exact]["change"].min() / effect[is_exact]["change"].max()
conclude(
    question="Does what notebook 12 says of one model at one seed hold at other seeds and of other models?",
    answer=f"{'yes' if gap > 1 else 'no'}: in {effect['job'].nunique()} runs of {effect['model'].nunique()} models and "
    f"{effect['seed'].nunique()} seeds the smallest change under other noise is {gap:.1e} times the largest under exact noise.",
    would_change="a model whose embedding has a direction that is nearly, but not exactly, ignored.",
    limits=f"{effect['model'].nunique()} models, {images} images a job; a seed draws images, noises and random weights at once.",
)
