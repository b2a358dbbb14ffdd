"""`kill -9` of decode workers while a run goes on, and of the run itself: the same table, and nothing is left."""

from __future__ import annotations

import random
import signal
import time

from engine.run.faults import DONE, Campaign
from engine.run.stream.processes import all_end, are_freed, fork_servers_of, is_running, send, slots_of, workers_of
from engine.run.support import FINISHED, beside
from torture.kills import KILLED, Tally

# One kill in so many is of the process that workers are forked from, which ends all of them.
OF_A_FORK_SERVER = 10


def at_workers(campaign: Campaign, *, kills: int, seed: int, tally: Tally) -> None:
    """Kill random decode workers at random instants of runs, each of which must finish as if nobody had been killed."""
    chance = random.Random(seed)
    wanted = tally.kills.total() + kills
    while tally.kills.total() < wanted and not tally.violations:
        campaign.fresh()
        tally.starts += 1
        child = campaign.start()
        while is_running(child.pid):
            time.sleep(chance.uniform(0, 0.03 * campaign.duration))
            workers = workers_of(child.pid)
            of_server = chance.randrange(OF_A_FORK_SERVER) == 0
            victims = fork_servers_of(child.pid) if workers and of_server else workers
            if victims and tally.kills.total() < wanted and send(signal.SIGKILL, chance.choice(victims)):
                tally.kills["a fork server" if of_server else "a worker"] += 1
        code, text = child.wait()
        tally.tables += 1
        tally.require(code in DONE, f"a run whose workers are killed ended with {code}: {text[-1000:]}")
        tally.require(campaign.table() == "new", f"the table of a run whose workers are killed is {campaign.table()}")
        tally.require(beside(campaign.out) == FINISHED, f"left over is {sorted(beside(campaign.out))}")


def at_parents(campaign: Campaign, *, kills: int, seed: int, tally: Tally) -> None:
    """Kill runs at random instants: their processes and their memory go with them, and the next start finishes."""
    chance = random.Random(seed)
    wanted = tally.kills["a run"] + kills
    while tally.kills["a run"] < wanted and not tally.violations:
        campaign.fresh()
        tally.starts += 2
        child = campaign.start()
        time.sleep(chance.uniform(0, campaign.duration))
        processes, slots = [*fork_servers_of(child.pid), *workers_of(child.pid)], slots_of(child.pid)
        send(signal.SIGKILL, child.pid)
        tally.kills["a run"] += child.wait()[0] == KILLED
        tally.require(all_end(processes), f"of a killed run are left some of the processes {processes}")
        tally.require(are_freed(slots), "somebody has a killed run's slots")
        code, text = campaign.start().wait()
        tally.tables += 1
        tally.require(campaign.table() == "new", f"the next table is {campaign.table()}: {code}, {text[-1000:]}")
        tally.require(beside(campaign.out) == FINISHED, f"left over is {sorted(beside(campaign.out))}")
