#!/usr/bin/env python3
"""Writes k8s/rendered again with `kubectl kustomize`: a list a variant, an object a line, for `kubectl apply -f` and for tests on machines without
kubectl. Needs PyYAML (.deps/deploy has it)."""
import json
import pathlib
import subprocess
import tempfile

import yaml

K8S = pathlib.Path(__file__).resolve().parent
# Overlays, and the components that they leave out: variant -> (overlay, component added, component left out).
VARIANTS = {"dev": ("dev", None, None), "prod-cpu": ("prod-cpu", None, None), "prod-cpu-keda": ("prod-cpu", "keda", "hpa"), "prod-gpu": ("prod-gpu", None, None),
            "prod-gpu-hosts": ("prod-gpu", "leader-worker", None)}


def can_render():
    done = subprocess.run(["kubectl", "version", "--client", "-o", "json"], capture_output=True, text=True)
    return done.returncode == 0 and json.loads(done.stdout).get("kustomizeVersion", "").startswith("v5")


def render(variant):
    """-> one JSON text"""
    objects = [json.dumps(d) for d in yaml.safe_load_all(kustomize(variant)) if d]
    return '{"apiVersion": "v1", "kind": "List", "items": [\n' + ",\n".join(objects) + "\n]}\n"


def kustomize(variant):
    overlay, more, less = VARIANTS[variant]
    folder = K8S / "overlays" / overlay
    if not more:
        return subprocess.run(["kubectl", "kustomize", folder], check=True, capture_output=True, text=True).stdout
    with tempfile.TemporaryDirectory(dir=K8S / "overlays", prefix=".variant-") as temporary:
        file = pathlib.Path(temporary) / "kustomization.yaml"
        if less:
            text = (folder / "kustomization.yaml").read_text().replace(f"components/{less},", f"components/{more},").replace("files: [config/", f"files: [../{overlay}/config/")
            (pathlib.Path(temporary) / "config").symlink_to(folder / "config")
            file.write_text(text.replace(f"../{overlay}/config/", "config/"))
        else:
            file.write_text(f"apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nnamespace: parlando\nresources: [../{overlay}]\ncomponents: [../../components/{more}]\n")
        return subprocess.run(["kubectl", "kustomize", "--load-restrictor", "LoadRestrictionsNone", temporary], check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    (K8S / "rendered").mkdir(exist_ok=True)
    for name in VARIANTS:
        (K8S / f"rendered/{name}.json").write_text(render(name))
