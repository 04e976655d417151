"What the callback costs a training step, beside fasterai's SparsifyCallback and torch.nn.utils.prune on the same net"
from copy import deepcopy
from unittest.mock import patch
import torch.nn.utils.prune as tp
from torch import nn
from fastai.optimizer import Adam
from torchvision.models.resnet import BasicBlock,ResNet
from fasterai.core.criteria import large_final
from fasterai.core.schedule import one_shot
from fasterai.sparse.sparsify_callback import SparsifyCallback
import fastai_lottery.callback as lottery
from fastai_lottery.all import fused_adam,lenet_300_100,LotteryCallback,prunable
from common import images,interleave,learner,per_step,show,sized

def ours(make, density):
    "A Learner with our callback, pruned to `density`"
    l = make(LotteryCallback())
    if density<1: l.prune(1-density)
    return l

def at_once():
    "fasterai's schedule that prunes at the first step"
    s = deepcopy(one_shot)
    s.start_pct = 0.
    return s

def fasterais(make, density, layers):
    return make(SparsifyCallback(1-density, 'weight', 'global', large_final, at_once(), layer_type=layers))

def torchs(make, density):
    "torch's masks, which multiply in each forward pass"
    l = make(None)
    at = [(l.model.get_submodule(n.rpartition('.')[0]),'weight') for n in prunable(l.model)]
    tp.global_unstructured(at, tp.L1Unstructured, amount=1-density)
    return l

def compare(title, make, layers, repeats, densities=(.5,.2)):
    "Steps without and with, A B A B: the ratio of each to the net alone"
    arms = {'without':make(None), 'LotteryCallback, dense':ours(make, 1)}
    for d in densities: arms[f'LotteryCallback, {d:.0%} kept'] = ours(make, d)
    d = densities[-1]
    arms[f'fasterai SparsifyCallback, {d:.0%}'] = fasterais(make, d, layers)
    arms[f'torch.nn.utils.prune, {d:.0%}'] = torchs(make, d)
    ms = interleave({k:per_step(l) for k,l in arms.items()}, repeats)
    show(title, ms, 'without')
    assert len(ms)==4+len(densities)

def bench_lenet():
    dls = images(6000, (1,28,28))
    def make(cb): return learner(dls, lenet_300_100(), cbs=cb)
    compare('LeNet-300-100, batch 60, fused Adam: a training step', make, nn.Linear, 25)

def midway(make, forget=lottery.forget_pruned_):
    "A function that trains an epoch and returns ms a step, of a net that was pruned within its training, 1,500 steps ago"
    l = make(LotteryCallback())
    train = per_step(l)
    def f():
        with patch.object(lottery, 'forget_pruned_', forget): return train()
    f()
    l.prune(.5)
    for _ in range(sized(15, 1)): f()
    return f

def bench_midway():
    dls = images(6000, (1,28,28))
    def make(cb): return learner(dls, lenet_300_100(), cbs=cb)
    arms = {'dense':per_step(make(LotteryCallback())), 'pruned midway':midway(make),
            'pruned midway, moments kept':midway(make, lambda *args: None)}
    ms = interleave(arms, 25)
    show('LeNet-300-100, batch 60, fused Adam: a training step after a prune within the training', ms, 'dense')

def resnet18(): return ResNet(BasicBlock, [sized(2,1)]*4, num_classes=10)

def bench_resnet18():
    size,bs = sized((64,32), (32,2))
    dls = images(bs*4, (3,size,size), bs=bs, valid=bs)
    for name,opt in (('fused Adam',fused_adam),("fastai's Adam",Adam)):
        def make(cb): return learner(dls, resnet18(), opt_func=opt, cbs=cb)
        compare(f'resnet18, {size}×{size}, batch {bs}, {name}: a training step', make, nn.Conv2d, 7)
