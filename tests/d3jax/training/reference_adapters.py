"""The loss adapters in float64 NumPy, a scenario and a row at a time.

A batch here is what is left of one without its padding: (logits, label, scenario).
"""

import math

import numpy as np


def bce(logit, label):
    return np.logaddexp(0.0, logit) - label * logit


def focal_bce(logit, label, gamma):
    """(1 - p)^γ (-ln p), p the probability of the class that came true."""
    p = 1 / (1 + math.exp(-logit))
    p = p if label == 1 else 1 - p
    return (1 - p) ** gamma * -math.log(p)


def row_weights(weights, scenario, aggregation):
    """What each row's loss is multiplied with before the mean over rows."""
    rows = len(scenario)
    counts = {s: sum(scenario == s) for s in set(scenario)}
    if aggregation == "row":
        return np.array([weights[s] for s in scenario])
    return np.array([weights[s] * rows / counts[s] for s in scenario])


def brute_force_auc(logits, label):
    """The share of (click, no click) pairs in order, ties counting half; None for one class."""
    clicked, other = logits[label == 1], logits[label == 0]
    if not (clicked.size and other.size):
        return None
    return float(np.mean((np.sign(clicked[:, None] - other[None]) + 1) / 2))


class Adam:
    """Kingma and Ba (2015) for one number."""

    def __init__(self):
        self.mean = self.square = 0.0
        self.time = 0

    def change(self, gradient, rate):
        self.time += 1
        self.mean = 0.9 * self.mean + 0.1 * gradient
        self.square = 0.999 * self.square + 0.001 * gradient**2
        mean, square = self.mean / (1 - 0.9**self.time), self.square / (1 - 0.999**self.time)
        return -rate * mean / (math.sqrt(square) + 1e-8)


class DWA:
    def __init__(self, scenarios, period, temperature=2.0):
        self.weights = np.ones(scenarios)
        self.period, self.temperature = period, temperature
        self.rows = [[] for _ in range(scenarios)]
        self.history = []
        self.step = 0

    def update(self, logits, label, scenario):
        for z, y, s in zip(logits, label, scenario, strict=True):
            self.rows[s].append(bce(z, y))
        self.step += 1
        if self.step % self.period:
            return
        last = self.history[-1] if self.history else [None] * len(self.rows)
        self.history.append(
            [np.mean(r) if r else old for r, old in zip(self.rows, last, strict=True)]
        )
        self.rows = [[] for _ in self.rows]
        if len(self.history) < 2:
            return
        before, now = self.history[-2:]
        ratio = [1.0 if b is None else n / b for n, b in zip(now, before, strict=True)]
        power = np.exp(np.array(ratio) / self.temperature)
        self.weights = len(ratio) * power / power.sum()


class DTP:
    def __init__(self, scenarios, period, alpha=0.1, gamma=1.0):
        self.kpi = np.full(scenarios, 0.5)
        self.period, self.alpha, self.gamma = period, alpha, gamma
        self.window = []
        self.step = 0

    @property
    def weights(self):
        return np.array([-((1 - k) ** self.gamma) * math.log(k) for k in self.kpi])

    def update(self, logits, label, scenario):
        self.window.append((logits, label, scenario))
        self.step += 1
        if self.step % self.period:
            return
        logits, label, scenario = map(np.concatenate, zip(*self.window, strict=True))
        self.window = []
        for s in range(len(self.kpi)):
            auc = brute_force_auc(logits[scenario == s], label[scenario == s])
            if auc is not None:
                mixed = self.alpha * auc + (1 - self.alpha) * self.kpi[s]
                self.kpi[s] = min(max(mixed, 0.05), 0.99)


class Uncertainty:
    def __init__(self, scenarios, rate, aggregation):
        self.eta = np.zeros(scenarios)
        self.rate, self.aggregation = rate, aggregation
        self.adam = [Adam() for _ in range(scenarios)]

    @property
    def weights(self):
        return np.exp(-self.eta)

    def objective(self, eta, logits, label, scenario):
        losses = bce(logits, label)
        if self.aggregation == "row":
            return np.mean(np.exp(-eta[scenario]) * losses + eta[scenario] / 2)
        return sum(
            np.exp(-eta[s]) * losses[scenario == s].mean() + eta[s] / 2 for s in set(scenario)
        )

    def update(self, logits, label, scenario):
        gradient = np.zeros_like(self.eta)
        for s in set(scenario):
            shift = np.zeros_like(self.eta)
            shift[s] = 1e-5
            high = self.objective(self.eta + shift, logits, label, scenario)
            low = self.objective(self.eta - shift, logits, label, scenario)
            gradient[s] = (high - low) / 2e-5
        for s in set(scenario):
            self.eta[s] += self.adam[s].change(gradient[s], self.rate)


class GradNorm:
    def __init__(self, scenarios, asymmetry=1.5, rate=0.025):
        self.weights = np.ones(scenarios)
        self.asymmetry, self.rate = asymmetry, rate
        self.adam = [Adam() for _ in range(scenarios)]

    def update(self, logits, label, scenario, norms):
        """`norms[s]`: the norm of the gradient of the mean loss of scenario s."""
        present = sorted(set(scenario))
        losses = {s: bce(logits, label)[scenario == s].mean() for s in present}
        fraction = {s: losses[s] / math.log(2) for s in present}
        mean_fraction = np.mean(list(fraction.values()))
        weighed = {s: self.weights[s] * norms[s] for s in present}
        mean_norm = np.mean(list(weighed.values()))
        for s in present:
            target = mean_norm * (fraction[s] / mean_fraction) ** self.asymmetry
            gradient = np.sign(weighed[s] - target) * norms[s]
            self.weights[s] = max(self.weights[s] + self.adam[s].change(gradient, self.rate), 1e-3)
        absent = sum(w for s, w in enumerate(self.weights) if s not in present)
        total = sum(self.weights[s] for s in present)
        for s in present:
            self.weights[s] *= (len(self.weights) - absent) / total
