"A whole lenet-mnist round through `fit_lottery`, beside a hand-written PyTorch loop with the same steps, and fastai's defaults"
import torch
import torch.nn.functional as F
from fastai.basics import Adam,CrossEntropyLossFlat,DataLoader,DataLoaders,Learner,accuracy
from fastai_lottery.all import lenet_300_100,LotteryCallback
from common import data,interleave,learner,per_step,show,timed

EPOCHS = 2
def train(m, opt, x, y, bs):
    "The steps of a training, and nothing else"
    for _ in range(EPOCHS):
        for i in torch.randperm(len(x)).split(bs)[:len(x)//bs]:
            loss = F.cross_entropy(m(x.index_select(0,i)), y.index_select(0,i))
            opt.zero_grad(set_to_none=True)
            loss.backward()
            opt.step()

def loop(dls, lr=1.2e-3):
    (x,y),bs = dls.train_ds.tensors,dls.train.bs
    def f():
        m,ms = lenet_300_100().train(),[]
        opt = torch.optim.Adam(m.parameters(), lr=lr, fused=True)
        with timed(ms): train(m, opt, x, y, bs)
        return ms[0]/(EPOCHS*(len(x)//bs))
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
    ds,bs = list(zip(*dls.train_ds.tensors))[:6000],dls.train.bs
    d = DataLoaders(DataLoader(ds, bs=bs, shuffle=True, drop_last=True), DataLoader(ds[:bs], bs=bs), device='cpu')
    return per_step(learner(d, lenet_300_100(), opt_func=Adam, loss_func=CrossEntropyLossFlat()))

def bench_round():
    dls,what = data()
    arms = {'hand-written loop':loop(dls), 'fit_lottery, fit':lottery(dls, Learner.fit, lr=1.2e-3),
            'fit_lottery, fit_one_cycle':lottery(dls, Learner.fit_one_cycle, lr_max=1.2e-3),
            "fastai's DataLoader and Adam, no masks":plain(dls)}
    ms = interleave(arms, 5)
    show(f'LeNet-300-100 on {what}, batch {dls.train.bs}, {EPOCHS} epochs: ms a step, all in', ms, 'hand-written loop')
    assert len(ms)==4
