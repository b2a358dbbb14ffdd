"""The parts of the campaigns: each sets its stage in an empty folder, runs, and says what it saw."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

from cervix_engine.run.batch import BatchConfig, predict_folder
from cervix_engine.run.session import Choose, choose_backend
from engine.cluster.ray_cluster import RayCluster
from engine.cluster.slow_choice import CHUNK_ROWS
from engine.run.faults import BATCH, SHARD, Campaign
from engine.run.support import choose_fake, content, draw_folder, make_bundle, make_fake_bundle, run_setup
from torture.cluster import BATCH as CLUSTER_BATCH
from torture.cluster import ClusterRuns
from torture.corpus import OK, corpus, plant
from torture.errors import at_every_call
from torture.fuzz import MAX_INPUT_BYTES
from torture.fuzz import fuzz as fuzz_decoder
from torture.hostile import HEADROOM_BYTES, Finished, cuts, judge, judge_cuts, kinds, outcomes, predict, refusals
from torture.kills import Executed, Tally, at_every_point, at_random_instants
from torture.report import Facts, Seen
from torture.soak import growth_per_run, growths
from torture.soak import soak as run_after_run
from torture.workers import at_parents, at_workers

ORDINARY_TILES = 50
CLUSTER_NODES = 3


def points(scratch: Path, *, tiles: int) -> Seen:
    """Kill forked runs of the tiny model at each step in turn."""
    tally = Tally()
    at_every_point(_forked(scratch, tiles, bundle=make_bundle(scratch / "bundle").root), tally=tally)
    return Seen({"tiles a run": tiles + 1, **_tallied(tally)}, tuple(tally.violations))


def errors(scratch: Path, *, tiles: int) -> Seen:
    """Let each call of forked runs fail in turn; on the fake backend, for a model has no part in it."""
    bundle = make_fake_bundle(scratch / "bundle").root
    seen = at_every_call(_forked(scratch, tiles, bundle=bundle, choose=choose_fake))
    facts: Facts = {
        "tiles a run": tiles + 1,
        "calls that failed": seen.calls.total(),
        "how": _counted(seen.calls),
        "of them not needed": seen.needless,
    }
    return Seen(facts, tuple(seen.violations))


def kills(scratch: Path, *, count: int, programs: int, tiles: int, seed: int) -> Seen:
    """Kill forked runs and programs of the tiny model at random instants."""
    forked, tally = _forked(scratch, tiles, bundle=make_bundle(scratch / "bundle").root), Tally()
    at_random_instants(forked, kills=count, seed=seed, tally=tally)
    facts: Facts = {"seed": seed, "tiles a run": tiles + 1, "seconds of an undisturbed forked run": forked.duration}
    if programs:
        executed = _campaign(Executed, scratch / "tiles", scratch / "bundle", scratch / "executed")
        at_random_instants(executed, kills=programs, seed=seed + 1, tally=tally)
        facts = {**facts, "kills of them in programs": programs, "seconds of an undisturbed program": executed.duration}
    return Seen({**facts, **_tallied(tally)}, tuple(tally.violations))


def workers(scratch: Path, *, count: int, parents: int, tiles: int, seed: int) -> Seen:
    """Kill decode workers of programs that run the tiny model, and then such programs."""
    bundle, tally = make_bundle(scratch / "bundle").root, Tally()
    campaign = _campaign(Executed, _drawn_tiles(scratch, tiles), bundle, scratch / "executed")
    at_workers(campaign, kills=count, seed=seed, tally=tally)
    at_parents(campaign, kills=parents, seed=seed + 1, tally=tally)
    facts: Facts = {"seed": seed, "tiles a run": tiles + 1, "seconds of an undisturbed program": campaign.duration}
    return Seen({**facts, **_tallied(tally)}, tuple(tally.violations))


def cluster(scratch: Path, *, kills: Counter[str], tiles: int, seed: int) -> Seen:
    """Kill actors, nodes and drivers of runs on a Ray cluster of three nodes, on a backend that takes its time."""
    bundle, tally = make_fake_bundle(scratch / "bundle").root, Tally()
    root = _drawn_tiles(scratch, tiles)
    local, expected = _folder(scratch / "local"), {}
    for name in ("preds.csv", "preds"):
        config = BatchConfig(root, local / name, bundle, batch_size=CLUSTER_BATCH)
        predict_folder(config, setup=run_setup(choose=choose_fake, chunk_rows=CHUNK_ROWS))
        expected[name] = content(config.out)
    with RayCluster(CLUSTER_NODES) as running:
        runs = ClusterRuns(running, tiles=root, bundle=bundle, folder=_folder(scratch / "out"), expected=expected)
        runs.at_random_instants(kills, seed=seed, tally=tally)
    facts: Facts = {"seed": seed, "tiles a run": tiles + 1, "nodes": CLUSTER_NODES, "tiles a batch": CLUSTER_BATCH}
    told = {name: fact for name, fact in _tallied(tally).items() if name != "tiles a batch, a shard"}
    return Seen({**facts, **told}, tuple(tally.violations))


def kills_model(scratch: Path, *, model: Path, data: Path, count: int, tiles: int, seed: int) -> Seen:
    """Kill programs that run a given bundle over real tiles."""
    for tile in _spread(_real_tiles(data), tiles):
        target = scratch / "tiles" / tile.parent.name / tile.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(tile, target)
    campaign, tally = _campaign(Executed, scratch / "tiles", model.resolve(), scratch / "executed"), Tally()
    at_random_instants(campaign, kills=count, seed=seed, tally=tally)
    facts: Facts = {"seed": seed, "tiles a run": tiles, "seconds of an undisturbed run": campaign.duration}
    return Seen({**facts, **_tallied(tally)}, tuple(tally.violations))


def hostile(scratch: Path, *, data: Path | None, cut_tiles: int) -> Seen:
    """Run over the corpus of hostile files, over real tiles that are cut, and over all that are whole."""
    model = make_bundle(scratch / "bundle").root
    draw_folder(scratch / "ordinary", ORDINARY_TILES)
    ordinary = predict(scratch / "ordinary", model=model, out=scratch / "ordinary.csv")
    seen = _over_the_corpus(scratch, model, ordinary)
    if data is None:
        return seen + Seen({"real tiles": "none: $CERVIX_DATA is not set"}, ())
    return seen + _over_cut_tiles(scratch, model, ordinary, data, cut_tiles) + _over_whole_tiles(scratch, model, data)


def _over_the_corpus(scratch: Path, model: Path, ordinary: Finished) -> Seen:
    things = corpus()
    plant(scratch / "things", things)
    finished = predict(scratch / "things", model=model, out=scratch / "things.csv")
    violations = judge(finished, things, out=scratch / "things.csv", ordinary=ordinary)
    facts: Facts = {
        "hostile files": len(things),
        "specified outcomes": kinds(things),
        "seconds": finished.seconds,
        "peak bytes": finished.peak_bytes,
        "peak bytes of an ordinary run": ordinary.peak_bytes,
        "allowed beyond it": HEADROOM_BYTES,
    }
    return Seen(facts, (*violations, *refusals(scratch / "refusals", model=model)))


def _over_cut_tiles(scratch: Path, model: Path, ordinary: Finished, data: Path, count: int) -> Seen:
    chosen = _spread(_real_tiles(data), count)
    wanted = cuts(chosen, scratch / "cuts")
    finished = predict(scratch / "cuts", model=model, out=scratch / "cuts.csv")
    violations = judge_cuts(finished, wanted, out=scratch / "cuts.csv", ordinary=ordinary)
    facts: Facts = {"real tiles cut": len(chosen), "cuts": len(wanted), "peak bytes over cuts": finished.peak_bytes}
    return Seen(facts, tuple(violations))


def _over_whole_tiles(scratch: Path, model: Path, data: Path) -> Seen:
    real = _real_tiles(data)
    finished = predict(data / "sipakmed" / "tiles", model=model, out=scratch / "whole.csv")
    rows = Counter(outcomes(scratch / "whole.csv").values())
    facts: Facts = {"whole real tiles": len(real), "of them predicted": rows[OK], "seconds over them": finished.seconds}
    held = finished.code == 0 and rows == {OK: len(real)}
    return Seen(facts, () if held else (f"of {len(real)} real tiles: {dict(rows)}, exit code {finished.code}",))


def fuzz(scratch: Path, *, executions: int, seed: int) -> Seen:
    """Fuzz the decode wrapper."""
    seen = fuzz_decoder(scratch, executions=executions, seed=seed)
    facts: Facts = {
        "seed": seed,
        "seeds": seen.seeds,
        "executions": seen.executions,
        "outcomes": _counted(seen.outcomes),
        "edges reached": seen.coverage,
        "inputs kept": seen.corpus,
        "longest input, bytes": MAX_INPUT_BYTES,
        "peak MB": seen.peak_mb,
    }
    short = seen.executions < executions and not seen.violations
    return Seen(facts, (*seen.violations, *([f"{seen.executions} of {executions} executions"] if short else [])))


def soak(scratch: Path, *, runs: int, minutes: float, tiles: int) -> Seen:
    """Run after run of the tiny model in this process."""
    config = BatchConfig(
        tiles=_drawn_tiles(scratch, tiles),
        out=_folder(scratch / "out") / "preds.csv",
        model=make_bundle(scratch / "bundle").root,
        workers=2,
    )
    samples = list(run_after_run(config, runs=runs, seconds=60 * minutes))
    sizes = [item.rss_bytes for item in samples]
    facts: Facts = {
        "runs": len(samples),
        "tiles a run": tiles + 1,
        "RSS after the first run": sizes[0],
        "MB after each tenth": ", ".join(f"{sizes[(len(sizes) - 1) * part // 10] / 1e6:.1f}" for part in range(1, 11)),
        "RSS bytes a run, fitted over the last half": growth_per_run(sizes),
        "descriptors, first and last": f"{samples[0].descriptors}, {samples[-1].descriptors}",
        "threads, first and last": f"{samples[0].threads}, {samples[-1].threads}",
    }
    return Seen(facts, tuple(growths(samples)))


def _forked(scratch: Path, tiles: int, *, bundle: Path, choose: Choose = choose_backend) -> Campaign:
    campaign = _campaign(Campaign, _drawn_tiles(scratch, tiles), bundle, scratch / "forked", choose=choose)
    threads = len(list(Path("/proc/self/task").iterdir()))
    assert threads == 1, f"forking needs a process without threads, this one has {threads}"
    return campaign


def _campaign(
    kind: type[Campaign], tiles: Path, bundle: Path, scratch: Path, *, choose: Choose = choose_backend
) -> Campaign:
    setup = run_setup(choose=choose, shard=SHARD)
    return kind(os.fspath(tiles), os.fspath(bundle), os.fspath(_folder(scratch)), "preds.csv", setup=setup)


def _drawn_tiles(scratch: Path, count: int) -> Path:
    """So many good tiles, and a bad one."""
    root = draw_folder(scratch / "tiles", count)
    (root / "bad.jpg").write_bytes(b"no tile")
    return root


def _real_tiles(data: Path) -> list[Path]:
    return sorted((data / "sipakmed" / "tiles").rglob("*.jpg"))


def _spread(tiles: list[Path], count: int) -> list[Path]:
    return tiles[:: max(1, len(tiles) // count)][:count]


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {what}" for what, count in counts.most_common())


def _tallied(tally: Tally) -> Facts:
    return {
        "tiles a batch, a shard": f"{BATCH}, {SHARD.tiles}",
        "kills": tally.kills.total(),
        "where": _counted(tally.kills),
        "starts": tally.starts,
        "tables finished and compared": tally.tables,
    }
