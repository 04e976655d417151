"What the callback costs a training step, beside fasterai's SparsifyCallback and torch.nn.utils.prune on the same net"
import torch.nn.utils.prune as tp
from fastai.vision.models import resnet18
from fasterai.sparse.sparsify_callback import SparsifyCallback
from fasterai.core.criteria import large_final as fasterai_large_final
from fasterai.core.schedule import one_shot
from common import *

def ours(mk, density):
    def f():
        l = mk(LotteryCallback())
        if density<1: l.prune(1-density)
        return l
    return f
def fasterai(mk, density, layers): return lambda: mk(SparsifyCallback(1-density, 'weight', 'global', fasterai_large_final, Schedule0(), layer_type=layers))
def Schedule0():
    s = deepcopy(one_shot)
    s.start_pct = 0.
    return s
def hooks(mk, density):
    def f():
        l = mk(None)
        tp.global_unstructured([(l.model.get_submodule(n.rpartition('.')[0]),'weight') for n in prunable(l.model)], tp.L1Unstructured, amount=1-density)
        return l
    return f

def compare(title, mk, layers, repeats, density=.2):
    arms = {'without':lambda: mk(None), 'LotteryCallback, dense':ours(mk, 1), f'LotteryCallback, {density:.0%} kept':ours(mk, density),
            f'fasterai SparsifyCallback, {density:.0%}':fasterai(mk, density, layers), f'torch.nn.utils.prune, {density:.0%}':hooks(mk, density)}
    ms = interleave({k:per_step(f()) for k,f in arms.items()}, repeats)
    show(title, ms, 'without')
    return ms

def bench_lenet():
    dls = images(6000, (1,28,28))
    ms = compare('LeNet-300-100, batch 60, fused Adam: a training step', lambda cb: learner(dls, lenet_300_100(), cbs=cb), nn.Linear, 15)
    assert len(ms)==5

def bench_resnet18():
    dls = images(32*4, (3,64,64), bs=32, valid=32)
    for name,opt in (('fused Adam',fused_adam),("fastai's Adam",Adam)):
        ms = compare(f'resnet18, 64×64, batch 32, {name}: a training step', lambda cb: learner(dls, resnet18(num_classes=10), opt_func=opt, cbs=cb), nn.Conv2d, 7)
        assert len(ms)==5
