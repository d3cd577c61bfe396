"""What paper A claims of nullspace finetuning (tables 1 and 2, ablations), and how notebooks 07 and 08 decide it.

``07_paired`` and ``08_paired`` hold differences of accuracies between methods trained alike, with two intervals: over
seeds (Student's t) and over images (bootstrap). One method is better than another if both exclude zero and
there is more than one seed. ``07_dynamics`` holds the norm of noise at the verified boundary of eps over steps,
``08_eps`` accuracies by eps.
"""

from __future__ import annotations

import itertools

from nullpaper.statistics import Interval
from nullpaper.studies.evidence import (
    Answer,
    Missing,
    Tables,
    above,
    counted,
    every,
    negate,
    number,
    percent,
    points,
    some,
    word,
)
from nullpaper.studies.evidence_paired import ALSO, ASKED, BETTER, WORSE, compare, difference, grade, over_images
from nullpaper.studies.judging import Claim, claim

__all__ = ["FINETUNING"]


@claim(
    "A",
    "table 1",
    "nullspace finetuning improves the clean, the adversarial and the corruption accuracy of its start",
    where="07",
    criterion=BETTER + "Holds if better than the start checkpoint on all measures, in part if on some" + WORSE,
)
def finetuning(tables: Tables) -> tuple[str, str]:
    measured, answers = compare(tables, "nullspace", "start", ASKED + ALSO)
    return measured, grade(answers.values())


@claim(
    "A",
    "table 1, without the control",
    "it is the nullspace noise that does it, not the finetuning",
    where="07",
    criterion=BETTER
    + "Holds if better than the same finetuning with noise 0 on all measures, in part if on some"
    + WORSE,
)
def noise_or_finetuning(tables: Tables) -> tuple[str, str]:
    measured, answers = compare(tables, "nullspace", "zero", ASKED + ALSO)
    return f"against noise 0: {measured}", grade(answers.values())


@claim(
    "A",
    "ablation",
    "nullspace noise is better than random noise at the same eps",
    where="07",
    criterion=BETTER + "Holds if better than random noise rescaled to eps on all measures, in part if on some" + WORSE,
)
def random_noise(tables: Tables) -> tuple[str, str]:
    measured, answers = compare(tables, "nullspace", "random", ASKED + ALSO)
    return measured, grade(answers.values())


@claim(
    "",
    "",
    "nullspace noise is better than random noise of its norm, and than its own permutation",
    where="07",
    criterion=BETTER + "Holds if better than both on all measures, in part if on some" + WORSE,
)
def matched_noise(tables: Tables) -> tuple[str, str]:
    shown, answers = [], []
    for against, name in (("random_norm", "random of equal norm"), ("permuted", "permuted")):
        measured, found = compare(tables, "nullspace", against, ASKED)
        shown.append(f"{name}: {measured}")
        answers += found.values()
    return "; ".join(shown), grade(answers)


@claim(
    "A",
    "table 2",
    "adversarial training is better on attacks and worse on clean and corrupted images than nullspace finetuning",
    where="07",
    criterion=BETTER
    + "Holds if Madry's and TRADES are better on PGD and worse on clean images and corruptions, in part if one is "
    "better on PGD and worse on clean images, or the robust checkpoint than its start (over images) at 8/255",
)
def adversarial_training(tables: Tables) -> tuple[str, str]:
    shown, whole, part = [], [], []
    for method, name in (("pgd_at", "Madry"), ("trades", "TRADES")):
        measured, found = compare(tables, method, "nullspace", ("pgd", "clean", "corruptions"))
        shown.append(f"{name}: {measured}")
        whole += [found["pgd"], negate(found["clean"]), negate(found["corruptions"])]
        part.append(every((found["pgd"], negate(found["clean"]))))
    try:
        measured, traded = _robust_checkpoint(tables)
        shown.append(measured)
        part.append(traded)
    except Missing:
        pass  # only there to show what a run of more than a few steps does
    return "; ".join(shown), word(every(whole), some(part))


def _robust_checkpoint(tables: Tables) -> tuple[str, Answer]:
    """What the longer trained robust checkpoint gained and lost over its start, and whether both are beyond doubt."""
    zero, measures = Interval(0, 0, 0, 1), ("pgd 8/255", "clean", "corruptions")
    found = {measure: over_images(tables, "vit_robust", "start", measure, "07_robust") for measure in measures}
    shown = ", ".join(f"{name.replace('pgd', 'PGD')} {points(gain, None)}" for name, gain in found.items())
    traded = every((above(found["pgd 8/255"], zero), above(zero, found["clean"])))
    return f"Madry for 1,500 steps against the start: {shown} (one run, {found['clean'].n} images)", traded


@claim(
    "A",
    "figure on learned noise",
    "finetuning enlarges the nullspace",
    where="07",
    criterion="holds if the norm at the boundary of eps is above its first value after the last step, and above that "
    "of finetuning with noise 0; in part if only above its first value",
)
def growth(tables: Tables) -> tuple[str, str]:
    rows = tables.rows("07_dynamics", method="nullspace").sort_values("step")
    norms, steps = counted(rows, "norm"), rows["step"].tolist()
    control = counted(tables.rows("07_dynamics", method="zero").sort_values("step"), "norm")[-1]
    grown = above(norms[-1], norms[0])
    measured = (
        f"norm {number(norms[0], of=None)} at step {steps[0]:g}, {number(norms[-1])} at step {steps[-1]:g}; "
        f"{number(control, of=None)} with noise 0"
    )
    return measured, word(every((grown, above(norms[-1], control))), grown)


@claim(
    "A",
    "ablation",
    "eps hardly matters between 0.01 and 0.1",
    where="08",
    criterion="holds if average accuracies differ by less than a point and all intervals over seeds overlap, no if two "
    "do not overlap; a single seed decides nothing",
)
def eps_matters(tables: Tables) -> tuple[str, str]:
    rows = tables.rows("08_eps", method="nullspace", measure="average").sort_values("eps")
    values = counted(rows, "value")
    apart = any(above(*pair) is not None for pair in itertools.combinations(values, 2))
    spread = max(known.value for known in values) - min(known.value for known in values)
    shown = (f"{percent(known)} at {eps:g}" for eps, known in zip(rows["eps"], values, strict=True))
    decided = False if apart else True if spread < 0.01 else None
    return f"average {', '.join(shown)}", word(decided if min(known.n for known in values) > 1 else None)


@claim(
    "A",
    "authors' reply",
    "without early stop, robustness to attacks rises and clean accuracy falls",
    where="08",
    criterion=BETTER
    + "Holds if the published noise without early stop is better under FGSM and worse on clean images, in part if one "
    "of them",
)
def early_stop(tables: Tables) -> tuple[str, str]:
    measured, found = compare(tables, "official, no early stop", "official", ("fgsm", "clean"), "08_paired")
    answers = found["fgsm"], negate(found["clean"])
    return measured, word(every(answers), some(answers))


@claim(
    "",
    "",
    "a gain over a start that is given a wrong input scale, as in the published pipeline, is the finetuning's",
    where="08",
    criterion=BETTER
    + "Holds if behind the wrong scale finetuning with noise 0 is better than the start on the average and nullspace "
    "noise is not better than noise 0, in part if only the former",
)
def faked_gain(tables: Tables) -> tuple[str, str]:
    names = [f"{method}, mismatched" for method in ("start", "zero", "nullspace")]
    plain, repaired = compare(tables, names[1], names[0], ("average",), "08_paired")
    extra, added = compare(tables, names[2], names[1], ("average",), "08_paired")
    seeds, _, _ = difference(tables, names[2], names[1], "average", "08_paired")
    no_more = negate(added["average"])
    if no_more is None and seeds.n > 1 and max(abs(end) for end in (seeds.low, seeds.high)) < 0.01:
        no_more = True  # undecided, but less than a point either way
    return f"noise 0: {plain}; nullspace over noise 0: {extra}", word(
        every((repaired["average"], no_more)), repaired["average"]
    )


FINETUNING: tuple[Claim, ...] = (
    *(finetuning, noise_or_finetuning, random_noise, matched_noise, adversarial_training, growth),
    *(eps_matters, early_stop, faked_gain),
)
