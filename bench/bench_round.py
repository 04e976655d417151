"A whole lenet-mnist round through `fit_lottery`, beside a hand-written PyTorch loop with the same steps, and fastai's defaults"
import torch.nn.functional as F
from common import *

EPOCHS = 2
def data():
    "MNIST where it can be found, else random images of its size"
    try: return mnist(seed=0, download=False),'MNIST'
    except FileNotFoundError: return images(55000, (1,28,28), valid=5000),'random images of the size of MNIST'

def loop(dls, lr=1.2e-3):
    x,y = dls.train_ds.tensors
    def f():
        m = lenet_300_100()
        opt = torch.optim.Adam(m.parameters(), lr=lr, fused=True)
        m.train()
        t = time.perf_counter()
        for _ in range(EPOCHS):
            for i in torch.randperm(len(x)).split(60)[:len(x)//60]:
                loss = F.cross_entropy(m(x.index_select(0,i)), y.index_select(0,i))
                opt.zero_grad(set_to_none=True)
                loss.backward()
                opt.step()
        return 1000*(time.perf_counter()-t)/(EPOCHS*(len(x)//60))
    return f

def lottery(dls, fit, **kw):
    "ms a step of the second round: prune, rewind, train, validate each epoch, record"
    def f():
        l = learner(dls, lenet_300_100(), metrics=accuracy, cbs=LotteryCallback())
        rs = l.fit_lottery(EPOCHS, rounds=1, amount=.8, scope={'out':.5}, fit=fit, **kw)
        return 1000*rs[1]['seconds']/rs[1]['iterations']
    return f

def plain(dls):
    "fastai as it comes: its own DataLoader and Adam"
    ds = list(zip(*dls.train_ds.tensors))[:6000]
    d = DataLoaders(DataLoader(ds, bs=60, shuffle=True, drop_last=True), DataLoader(ds[:60], bs=60), device='cpu')
    return per_step(learner(d, lenet_300_100(), opt_func=Adam, loss_func=CrossEntropyLossFlat()))

def bench_round():
    dls,what = data()
    ms = interleave({'hand-written loop':loop(dls), 'fit_lottery, fit':lottery(dls, Learner.fit, lr=1.2e-3),
                     'fit_lottery, fit_one_cycle':lottery(dls, Learner.fit_one_cycle, lr_max=1.2e-3), "fastai's DataLoader and Adam, no masks":plain(dls)}, 5)
    show(f'LeNet-300-100 on {what}, batch 60, {EPOCHS} epochs: ms a step, all in', ms, 'hand-written loop')
    assert len(ms)==4
