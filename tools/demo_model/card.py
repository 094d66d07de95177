#!/usr/bin/env python3
"""Writes the model card, weights/README.md, from card.md: the measured figures in place of {accuracy}, {load}, {export} and {size}.

Example: tools/demo_model/card.py --accuracy build/demo_model/accuracy.json --export build/demo_model/export.json
Python's standard library only.
"""

import argparse
import json
import os

HERE = os.path.dirname(os.path.abspath(__file__))


def percent(share, digits=1):
    return f"{100 * share:.{digits}f} %"


def accuracy_table(figures):
    rows = ["| what | taught phrasings | unseen phrasings | asked of each | target | |", "|---|--:|--:|--:|--:|---|"]
    for name, figure in figures.items():
        if name in ("expert load", "MTP first draft accepted"):
            continue
        cells = [percent(figure[held_out]["right"]) if held_out in figure else "" for held_out in ("pairs", "phrasings")]
        target = verdict = ""
        if figure["target"] is not None:
            target = percent(figure["target"], 0)
            verdict = "met" if figure[figure["target_for"]]["right"] >= figure["target"] else "**missed**"
        rows.append(f"| {name} | {cells[0]} | {cells[1]} | {figure['pairs']['questions']} | {target} | {verdict} |")
    return "\n".join(rows)


def load_table(figures):
    load, drafts = figures["expert load"], figures["MTP first draft accepted"]
    met = lambda is_met: "met" if is_met else "**missed**"
    return "\n".join(
        [
            "| | measured | target | |",
            "|---|--:|--:|---|",
            f"| load of an expert over the mean, all layers | {load['smallest']:.2f} to {load['largest']:.2f} | 0.3 to 3 | {met(load['smallest'] >= 0.3 and load['largest'] <= 3)} |",
            f"| MTP: first drafts that the model itself would write | {percent(drafts['right'])} | {percent(drafts['target'], 0)} | {met(drafts['right'] >= drafts['target'])} |",
        ]
    )


def export_table(figures):
    rows = ["| Weir with | median difference | largest | same first choice | positions |", "|---|--:|--:|--:|--:|"]
    names = {"f32": "weights widened to float32", "auto": "FP8 weights and inputs, as served"}
    for dtype, row in figures.items():
        rows.append(f"| {names[dtype]} | {row['median']:.1e} | {row['largest']:.1e} | {percent(row['same first choice'], 2)} | {row['positions']} |")
    return "\n".join(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=os.path.join(HERE, "weights"))
    parser.add_argument("--accuracy", default="build/demo_model/accuracy.json")
    parser.add_argument("--export", default="build/demo_model/export.json")
    options = parser.parse_args()
    read = lambda path: json.load(open(path, encoding="utf-8"))
    with open(os.path.join(HERE, "card.md"), encoding="utf-8") as file:
        card = file.read()
    size = sum(os.path.getsize(os.path.join(options.model, name)) for name in os.listdir(options.model) if name != "README.md")
    figures = read(options.accuracy)["figures"]
    values = {"accuracy": accuracy_table(figures), "load": load_table(figures), "export": export_table(read(options.export)), "size": f"{size / 1e6:.1f}"}
    for name, value in values.items():
        card = card.replace("{" + name + "}", value)
    with open(os.path.join(options.model, "README.md"), "w", encoding="utf-8") as file:
        file.write(card)
    print(f"{options.model}/README.md")


if __name__ == "__main__":
    main()
