"""What paper B claims of adversarial training through LNLoRA, and what notebooks 09 to 11 make of it.

``09_paired`` holds differences between adapters after adversarial training (columns data, start, training, method,
against) with intervals over seeds and over images, ``09_long_paired`` those after 1,500 steps at 8/255, one run each.
"Comparable" is taken as not worse by more than `MARGIN`: an interval that contains zero would not show it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nullpaper.statistics import Interval
from nullpaper.studies.evidence import (
    Answer,
    Tables,
    above,
    every,
    interval,
    negate,
    number,
    percent,
    points,
    some,
    word,
)
from nullpaper.studies.evidence_paired import BETTER, NAMES, WORSE, compare, difference, grade, over_images
from nullpaper.studies.judging import Claim, claim

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FULLLORA", "MARGIN"]

MARGIN = 0.02
"""Accuracy that may be lost where robustness is called comparable."""
ATTACKED = ("pgd", "cw")
STANDARD = {"data": "cifar10", "start": "standard", "training": "pgd_at"}
ROBUST = STANDARD | {"start": "robust"}


def _comparable(seeds: Interval, images: Interval) -> Answer:
    """Whether no more than the margin is lost; one run has its interval over images alone."""
    bound = Interval(-MARGIN, -MARGIN, -MARGIN, 1)
    answers = [above(images, bound)] + ([above(seeds, bound)] if seeds.n > 1 else [])
    return answers[0] if len(set(answers)) == 1 else None


def _long(tables: Tables) -> tuple[str, dict[str, Interval]]:
    """LNLoRA minus full after the long runs, over images."""
    pair = "vit_robust_lnlora", "vit_robust"
    found = {measure: over_images(tables, *pair, measure, "09_long_paired") for measure in ATTACKED}
    shown = ", ".join(f"{NAMES[name]} {points(known, None).removesuffix(' points')}" for name, known in found.items())
    return f"{shown} points after 1,500 steps at 8/255 (one run, {found['pgd'].n:,} images)", found


@claim(
    "B",
    "abstract",
    "adversarial training of about 5 % of the parameters (LNLoRA) is as robust as of all of them",
    where="09 (d), (f)",
    criterion="holds if under PGD and CW it loses less than 2 points beyond doubt, both after 1,500 steps at 8/255 "
    "(interval over images) and in the runs at 2/255 from the standard start (intervals over seeds and images); in "
    "part if in one of the two; no if in neither and one of them is beyond doubt worse than that",
)
def comparable(tables: Tables) -> tuple[str, str]:
    share = tables.row("09_storage", adapter="lnlora")["share"]
    shown, answers = [f"{100 * share:.1f} % of the parameters"], []
    told, found = _long(tables)
    shown.append(told)
    bound = Interval(-MARGIN, -MARGIN, -MARGIN, 1)
    answers.append(every(above(known, bound) for known in found.values()))
    told, _ = compare(tables, "lnlora", "full", ATTACKED, "09_paired", **STANDARD)
    shown.append(f"at 2/255: {told}")
    pairs = [difference(tables, "lnlora", "full", measure, "09_paired", **STANDARD) for measure in ATTACKED]
    answers.append(every(_comparable(seeds, images) for seeds, images, _ in pairs))
    if True not in answers and False in answers:
        return "; ".join(shown), "no"
    return "; ".join(shown), word(every(answers), some(answers))


@claim(
    "B",
    "abstract",
    "the LayerNorm in front of the branch makes the difference to LoRA",
    where="09 (c)",
    criterion=BETTER
    + "Holds if LNLoRA is better than LoRA of its rank under PGD and CW at 2/255 from the standard start, in part if "
    "on one" + WORSE,
)
def norm_matters(tables: Tables) -> tuple[str, str]:
    measured, answers = compare(tables, "lnlora", "lora", ATTACKED, "09_paired", **STANDARD)
    return f"at 2/255: {measured}", grade(answers.values())


@claim(
    "B",
    "motivation",
    "scale and bias of LayerNorm differ strongly between standardly and adversarially trained ViTs",
    where="09 (e)",
    criterion="holds if both change relatively more than the weights of the other layers do, and more than under "
    "standard finetuning of as many steps; in part if one of the two does",
)
def layernorm_shift(tables: Tables) -> tuple[str, str]:
    def of(model: str, kind: str) -> Interval:
        return interval(tables.row("09_layernorm", model=model, kind=kind), "relative")

    shown, answers = [], []
    for model, name in (("vit_robust", "after 1,500 steps at 8/255"), ("pgd_at", "after the runs of (c)")):
        weights = of(model, "weight")
        kinds = {kind: of(model, f"LayerNorm {kind}") for kind in ("scale", "bias")}
        told = ", ".join(f"{kind} {percent(known, None)}" for kind, known in kinds.items())
        shown.append(f"{name} {told}, other weights {percent(weights, None)}")
        answers += [above(known, weights) for known in kinds.values()]
    control = {kind: of("standard", f"LayerNorm {kind}") for kind in ("scale", "bias")}
    shown.append(
        "standard finetuning " + ", ".join(f"{kind} {percent(known, None)}" for kind, known in control.items())
    )
    answers += [above(of("pgd_at", f"LayerNorm {kind}"), known) for kind, known in control.items()]
    scale, bias = answers[0::2], answers[1::2]
    return "; ".join(shown), word(every(answers), some((every(scale), every(bias))))


@claim(
    "B",
    "abstract",
    "it saves storage",
    where="09 (a)",
    criterion="holds if the files of the adapter take less than a tenth of the checkpoint's bytes",
)
def storage(tables: Tables) -> tuple[str, str]:
    rows = {name: tables.row("09_storage", adapter=name) for name in ("full", "lnlora")}
    sizes = {name: f"{row['stored_bytes'] / 1e3:,.0f} kB" for name, row in rows.items()}
    share = rows["lnlora"]["stored_share"]
    return f"{sizes['lnlora']} of {sizes['full']}, {100 * share:.1f} %", word(bool(share < 0.1))


@claim(
    "B",
    "abstract",
    "it saves training time",
    where="09 (b)",
    criterion="holds if on every model measured a step takes beyond doubt less than 0.9 of the time with an attack "
    "that differentiates with respect to the pixels alone; in part if on some, or with one that computes gradients of "
    "the weights too",
)
def training_time(tables: Tables) -> tuple[str, str]:
    answers: dict[str, list[Answer]] = {"careful": [], "careless": []}
    shown = []
    for _, row in tables.rows("09_costs", adapter="lnlora").iterrows():
        told = []
        for attack, prefix in (("careful", ""), ("careless", "careless_")):
            ends = (float(row[f"{prefix}ratio{end}"]) for end in ("", "_low", "_high"))
            ratio = Interval(*ends, int(row[f"{prefix}n"]))
            told.append(f"{attack} attack {number(ratio, '.2f', None)}")
            answers[attack].append(above(Interval(0.9, 0.9, 0.9, 1), ratio))
        shown.append(f"{_model(row)} {', '.join(told)}")
    part = some([*answers["careful"], *answers["careless"]])
    return f"time of a step, of full's: {'; '.join(shown)}", word(every(answers["careful"]), part)


@claim(
    "",
    "",
    "it saves memory in training",
    where="09 (b)",
    criterion="holds if on every model measured weights, moments and the highest point of a step take less than 0.9 of "
    "full's in all; in part if on some",
)
def training_memory(tables: Tables) -> tuple[str, str]:
    shown, answers = [], []
    for _, through in tables.rows("09_costs", adapter="lnlora").iterrows():
        full = tables.row("09_costs", adapter="full", model=through["model"])
        ratios = {name: through[name] / full[name] for name in ("gradients", "optimizer", "step_peak", "total")}
        told = ", ".join(f"{name.replace('_', ' ')} {ratio:.2f}" for name, ratio in ratios.items())
        shown.append(f"{_model(through)} {told}")
        answers.append(bool(ratios["total"] < 0.9))
    return f"of full's: {'; '.join(shown)}", word(every(answers), some(answers))


def _model(row: pd.Series) -> str:
    name = "shipped ViT" if row["model"] == "nullpaper_vit_cifar10" else row["model"]
    return f"{name} (batch {row['batch']})"


@claim(
    "",
    "RoLI, CVPR 2024, on other adapters",
    "from a standard start it stays behind full adversarial training, from a robust one a linear probe is enough",
    where="09 (d)",
    criterion="holds if at 2/255 LNLoRA is resolved worse than full under PGD from the standard start, and the linear "
    "probe loses less than 2 points to full from the robust start; in part if one of the two",
)
def robust_start(tables: Tables) -> tuple[str, str]:
    behind, worse = compare(tables, "lnlora", "full", ("pgd",), "09_paired", **STANDARD)
    enough, _ = compare(tables, "linear", "full", ("pgd",), "09_paired", **ROBUST)
    seeds, images, _ = difference(tables, "linear", "full", "pgd", "09_paired", **ROBUST)
    answers = negate(worse["pgd"]), _comparable(seeds, images)
    return f"LNLoRA from standard: {behind}; linear probe from robust: {enough}", word(every(answers), some(answers))


@claim(
    "",
    "",
    "nullspace noise helps where only LNLoRA is trained",
    where="11 (a)",
    criterion=BETTER
    + "Holds if better than the same finetuning with noise 0 on all measures, in part if on some"
    + WORSE,
)
def nullspace_through_adapter(tables: Tables) -> tuple[str, str]:
    measures = ("clean", "fgsm", "corruptions", "average")
    measured, answers = compare(tables, "nullspace, lnlora", "zero, lnlora", measures, "11_paired")
    return measured, grade(answers.values())


@claim(
    "",
    "",
    "nullspace noise adds to adversarial training",
    where="11 (b)",
    criterion=BETTER
    + "Holds if adversarial training with the noise is better than without on all measures, through LNLoRA and "
    "in full; in part if on some" + WORSE,
)
def joined(tables: Tables) -> tuple[str, str]:
    shown, answers = [], []
    for adapter in ("full", "lnlora"):
        pair = f"pgd_at_nullspace, {adapter}", f"pgd_at, {adapter}"
        measured, found = compare(tables, *pair, ("clean", "pgd 8/255", "corruptions"), "11_paired")
        shown.append(f"{adapter}: {measured}")
        answers += found.values()
    return "; ".join(shown), grade(answers)


@claim(
    "",
    "",
    "adversarial training through LNLoRA changes the size of the approximate nullspace",
    where="11 (c)",
    criterion="holds if the interval of the norm at the boundary of eps, over that of the start, excludes 1, and so "
    "does that of the norm over random noise's against the start's; in part if only the former",
)
def nullspace_size(tables: Tables) -> tuple[str, str]:
    start, after, whole = (tables.row("11_norm", run=run) for run in ("robust start", "pgd_at, lnlora", "pgd_at, full"))
    growth, ratio = interval(after, "growth"), interval(after, "ratio")
    in_full = number(interval(whole, "growth"), ".2f", None)
    measured = (
        f"norm {number(growth, '.2f')} times the robust start's, {in_full} in full; "
        f"over random noise's {number(ratio, '.2f', None)}, at the start {start['ratio']:.2f}"
    )
    one, before = Interval(1, 1, 1, 1), Interval(start["ratio"], start["ratio"], start["ratio"], 1)
    moved = above(growth, one) is not None and growth.n > 1
    return measured, word(moved and above(ratio, before) is not None or None, moved or None)


@claim(
    "",
    "",
    "an adapter leaves the exact nullspace of the patch embedding as it was",
    where="11 (d)",
    criterion="holds if dimension and subspace stay with branches in all layers, plain and with a norm; in part if "
    "with branches in the blocks alone",
)
def exact_nullspace_kept(tables: Tables) -> tuple[str, str]:
    names = {"pgd_at, lora": "LoRA in all layers", "pgd_at, lnlora": "LNLoRA in all layers"}
    names |= {"pgd_at, lnlora in blocks": "LNLoRA in the blocks alone"}
    rows = {name: tables.row("11_exact", model=name) for name in ("robust start", *names)}
    kept = {name: _same_space(rows[name], rows["robust start"]) for name in names}
    shown = (
        f"{title} {rows[name]['dimension']} dimensions"
        + (f" (overlap {rows[name]['overlap']:.3f})" if rows[name]["dimension"] else ", the embedding is not linear")
        for name, title in names.items()
    )
    return f"of {rows['robust start']['dimension']}: {'; '.join(shown)}", word(all(kept.values()), any(kept.values()))


def _same_space(row: pd.Series, start: pd.Series) -> bool:
    return bool(row["dimension"] == start["dimension"] and row["overlap"] > 1 - 1e-6)


FULLLORA: tuple[Claim, ...] = (
    *(comparable, norm_matters, layernorm_shift, storage, training_time, training_memory, robust_start),
    *(nullspace_through_adapter, joined, nullspace_size, exact_nullspace_kept),
)
