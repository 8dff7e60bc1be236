"""The simulator of scaling: its autoscaler does what Kubernetes' rules say, and the shipped settings hold the goals. `simulate_test.py SOURCE_DIR`."""
import pathlib
import sys
import xml.dom.minidom

source = pathlib.Path(sys.argv[1])
sys.path[:0] = [str(source / p) for p in ("tests/support", "k8s")]
import simulate  # noqa: E402
from checks import check, finish  # noqa: E402

BEHAVIOUR = {"scaleUp": {"stabilizationWindowSeconds": 0, "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}, {"type": "Pods", "value": 2, "periodSeconds": 15}]},
             "scaleDown": {"stabilizationWindowSeconds": 60, "policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}]}}


def scaler(low=1, high=100):
    return simulate.Scaler(low, high, BEHAVIOUR, 15)


check("near the aim nothing changes", scaler().decide(0, 10, 0.75) == 10, "")
check("twice the load is twice the replicas", scaler().decide(0, 10, 1.4) == 20, str(scaler().decide(0, 10, 1.4)))
check("more than the policies allow waits", scaler().decide(0, 10, 5.0) == 20, "")
one = scaler()
check("a few may grow by two", one.decide(0, 1, 5.0) == 3, "")
check("what was added counts within its period", one.decide(1, 3, 5.0) == 3, "")
check("and no longer behind it", one.decide(16, 3, 5.0) == 6, "")
check("never above the most", scaler(1, 12).decide(0, 10, 5.0) == 12, "")
down = scaler()
check("down only when the window has seen nothing else", down.decide(0, 10, 0.7) == 10 and down.decide(30, 10, 0.1) == 10, "")
check("then by one", down.decide(75, 10, 0.1) == 9, "")
check("and by the next one a period later", down.decide(90, 9, 0.1) == 9 and down.decide(140, 9, 0.1) == 8, "")
check("never below the least", scaler(3).decide(0, 3, 0.0) == 3, "")

for kind in ("hpa", "keda"):
    shipped = simulate.settings(kind)
    check(f"{kind}: every role is scaled", set(shipped) == set(simulate.ROLES), str(set(shipped)))
shipped = [(low, high, behaviour) for low, high, behaviour, _ in simulate.settings("hpa").values()]
check("both variants scale alike", [(low, high, behaviour) for low, high, behaviour, _ in simulate.settings("keda").values()] == shipped, "")
held = simulate.slots()
# What autoscalers see of a language model is the smaller of its sequences and what its cache has room for.
full = {"sequences_max": 64, "cache_tokens": 61440, "conversation_tokens": 2048}
check("a cache that is full of conversations has no slots", simulate.instances.slots("llm-chat", full) == 30, str(simulate.instances.slots("llm-chat", full)))
check("the official weights' cache is what limits them", simulate.slots("prod-gpu")["llm-chat"] == 30, str(simulate.slots("prod-gpu")))
check("slots are those of every role's configuration", set(held) == set(simulate.ROLES) and all(n == simulate.instances.SLOTS[role][1] for role, n in held.items()), str(held))
result, curve = simulate.simulate("hpa", 2500, 1)
again, _ = simulate.simulate("hpa", 2500, 1)
check("the same seed is the same day", result == again, "")
check("people do not wait (p99)", result["p99"] < simulate.GOAL_SECONDS, str(result["p99"]))
check("few wait through a rush and a lost zone", result["late_share"] < 0.005, str(result["late_share"]))
check("few are refused", result["refused_share"] < simulate.GOAL_REFUSED, str(result["refused_share"]))
peak, _ = simulate.simulate("peak", 2500, 1)
check("it costs less than half of what the peak needs all day", result["replica_hours_total"] < 0.5 * peak["replica_hours_total"], f"{result['replica_hours_total']} {peak['replica_hours_total']}")
starved = {role: (1, 2, behaviour, period) for role, (_, _, behaviour, period) in simulate.settings("hpa").items()}
simulate.settings = lambda kind: starved
worse, _ = simulate.simulate("hpa", 2500, 1)
check("too few replicas are seen", worse["late_share"] > 0.3 or worse["refused_share"] > 0.1, str(worse))
xml.dom.minidom.parseString(simulate.svg(curve, result))
finish()
