"Checks of `gpu.py`: what the callback costs a step, what a prune costs, and many small nets at once"
import statistics
from copy import deepcopy
from functools import partial
import torch,torch.nn.functional as F
from torch.func import functional_call,grad,stack_module_state,vmap
from torchvision.models import resnet18,resnet50
from fastai.basics import Callback,accuracy
from fastai_lottery.all import LeNet,lenet_300_100,LotteryCallback,conv_net,make_masks,Masks,named_weights,prunable,scores
from common import interleave,learner,sized
from gpu_kit import Found,Lacks,batches,check,leaks,seeded

# ---- a training step

class Timed(Callback):
    "Milliseconds of an epoch's training, validation left out"
    order = 100
    def __init__(self, place): self.place = place
    def before_train(self): self.a = self.place.mark()
    def after_train(self): self.ms = self.place.between(self.a, self.place.mark())

def step_ms(place, learn):
    "A function that trains an epoch and returns ms a step"
    def f():
        timed = Timed(place)
        learn.fit(1, 1e-4, cbs=timed)
        return timed.ms/len(learn.dls.train)
    return f

# net, shape of an image, items a batch, steps an epoch, repeats, and what a step with the callback may be to one without
steps = {
    'LeNet-300-100':(lenet_300_100, (1,28,28), 60, 100, 9, 1.4),
    'resnet18 at 224':(partial(resnet18, num_classes=10), (3,224,224), 64, 6, 5, 1.1),
    'resnet50 at 224':(partial(resnet50, num_classes=10), (3,224,224), 32, 6, 5, 1.1)}

@check(*steps)
def overhead(place, case):
    "a step with the callback beside one without: {}"
    make,shape,bs,n,repeats,most = steps[case]
    shape = sized(shape, (shape[0],*[min(o, 32) for o in shape[1:]]))
    dls = batches(place, shape, bs=sized(bs, 4), steps=sized(n, 2))
    def arm(cbs): return learner(dls, seeded(make, place), cbs=cbs)
    plain,ours = arm(None),arm(LotteryCallback())
    ours.prune(.8)
    ms = interleave(dict(plain=step_ms(place, plain), ours=step_ms(place, ours)), repeats)
    ratio = ms['ours']/ms['plain']
    bound,judged = f'× {most:g}',sized(place.cuda, False)
    return Found(ratio<=most if judged else ratio>0, f'{ms["plain"]:.2f} ms, × {ratio:.3f}', bound if judged else 'not judged here')

# ---- a global prune

def prune(w, masks): return make_masks(scores('large_final', list(w), w_f=w), masks, .2)
def cost(place, w, masks, repeats):
    "Median ms of a prune, the most bytes that one needed, and its masks"
    ms,peaks,out = [],[],{}
    def once(): ms.append(place.ms(lambda: out.update(new=prune(w, masks))))
    for _ in range(repeats):
        out.clear()
        peaks.append(place.peak(once))
    return statistics.median(ms),max(peaks),out['new']

def in_order(w, new):
    "Is every weight that stays at least as large as each that goes?"
    stay = min(float(w[n].abs()[m].min()) for n,m in new.items())
    go = max(float(w[n].abs()[~m].max()) for n,m in new.items())
    return go<=stay

def peers(place, w, repeats):
    "ms of what torch needs to find the threshold alone: `kthvalue`, and `topk` of what goes"
    flat = torch.cat(list(w.values())).abs_()
    k = len(flat)//5
    def both(f): return statistics.median(place.ms(f) for _ in range(repeats))
    return both(lambda: flat.kthvalue(k)),both(lambda: flat.topk(k, largest=False, sorted=False))

@check('10⁸','10⁹')
def large(place, case):
    "a global prune of {} weights, beside kthvalue and topk"
    n,repeats = {'10⁸':(sized(10**8, 10**5), 3), '10⁹':(sized(10**9, 10**6), 1)}[case]
    need,free = 22*n,place.free()
    if free<need: raise Lacks(f'needs {need/2**30:.0f} GiB, of which {free/2**30:.0f} are free')
    g = torch.Generator(place.device).manual_seed(0)
    w = {f'{i}':torch.randn(n//10, generator=g, device=place.device) for i in range(10)}
    masks = Masks.ones(w)
    prune({'0':w['0'][:1000]}, Masks.ones({'0':w['0'][:1000]}))    # what is loaded at first use is loaded
    ms,peak,new = cost(place, w, masks, repeats)
    kth,top = peers(place, w, repeats)
    exact,judged = new.n_kept==n-round(.2*n) and in_order(w, new),sized(place.cuda, False)
    figure = f'{"exact" if exact else "WRONG"}, {ms/1000:.3g} s, × {ms/kth:.3g}, × {ms/top:.3g}, peak × {peak/(4*n):.2f}'
    bound = f'exact, {6e-8*n:.0f} s, peak × 1.6' if judged else 'exact'
    return Found(exact and (not judged or (ms<=6e-5*n and peak<=1.6*4*n)), figure, bound)

# ---- many small nets at once

def some_nets(place, many):
    "Nets from different seeds, and masks of each, stacked by name, with a fifth of each layer kept"
    make = sized(lenet_300_100, partial(LeNet, 64, 40, 20, 10))
    nets = [seeded(make, place, seed) for seed in range(many)]
    ws = [{n:named_weights(m)[n] for n in prunable(m)} for m in nets]
    own = [make_masks({n:v.detach().abs() for n,v in w.items()}, Masks.ones(w), .8, 'local') for w in ws]
    masks = {n:torch.stack([m[n] for m in own]) for n in own[0]}
    return nets,masks

@torch.no_grad()
def step(ps, gs, vs, masks, lr=.05, mom=.9):
    "A step of SGD with momentum in place, pruned weights at 0; of one net or of a stack"
    for n,p in ps.items():
        vs[n].mul_(mom).add_(gs[n])
        p.sub_(vs[n], alpha=lr)
        if n in masks: p.mul_(masks[n])

def in_turn(nets, masks, x, y):
    "Train one net after the other; their parameters, stacked by name"
    for i,m in enumerate(nets):
        ps = dict(m.named_parameters())
        vs,mine = {n:torch.zeros_like(p) for n,p in ps.items()},{n:o[i] for n,o in masks.items()}
        for xb,yb in zip(x, y):
            gs = torch.autograd.grad(F.cross_entropy(m(xb[i]), yb[i]), list(ps.values()))
            step(ps, dict(zip(ps, gs)), vs, mine)
    return stack_module_state(nets)[0]

def at_once(nets, masks, x, y):
    "Train all nets in one, by `torch.func.vmap`; their parameters, stacked by name"
    ps,buffers = stack_module_state(nets)
    base = deepcopy(nets[0]).to('meta')
    def loss(p, b, xb, yb): return F.cross_entropy(functional_call(base, (p,b), (xb,)), yb)
    grads,vs = vmap(grad(loss)),{n:torch.zeros_like(p) for n,p in ps.items()}
    for xb,yb in zip(x, y): step(ps, grads(ps, buffers, xb, yb), vs, masks)
    return ps

@check()
def replicas(place):
    "many LeNets at once by torch.func.vmap, beside one by one"
    many,n,bs,width = sized(64, 3),sized(50, 3),sized(60, 8),sized(784, 64)
    nets,masks = some_nets(place, many)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, many, bs, width, generator=g).to(place.device)
    y = torch.randint(0, 10, (n,many,bs), generator=g).to(place.device)
    ends,ms = {},{}
    for train in (in_turn,at_once,in_turn,at_once):    # the second time of each counts
        copies = deepcopy(nets)
        ms[train] = place.ms(lambda: ends.update({train:train(copies, masks, x, y)}))
    a,b = ends[in_turn],ends[at_once]
    far = max(float((a[k]-b[k]).detach().abs().max()) for k in a)
    stray = leaks(a, masks)+leaks(b, masks)
    moved = any(bool((a[k][0]!=v).any()) for k,v in nets[0].named_parameters())
    figure = f'{many} nets, {ms[in_turn]/ms[at_once]:.2f} × as fast, {far:.0e} apart, {stray} not 0'
    return Found(far<=1e-4 and stray==0 and moved, figure, '1e-04 apart, 0')

# ---- a lottery

@check()
def conv_2(place):
    "a lottery of Conv-2 on images of the size of CIFAR-10"
    size,n = sized(32, 8),sized(100, 4)
    dls = batches(place, (3,size,size), bs=sized(60, 8), steps=n)
    net = seeded(partial(conv_net, 2, width=sized(64, 4), size=size), place)
    learn = learner(dls, net, metrics=accuracy, cbs=LotteryCallback())
    with learn.no_bar(): ms = place.ms(lambda: learn.fit_lottery(1, rounds=3, amount=.2, lr_max=1e-3, seed=0))
    want,got = [learn.lottery.masks.numel],[r.ticket.masks.n_kept for r in learn.lottery.rounds]
    for _ in range(3): want.append(want[-1]-round(.2*want[-1]))
    stray = leaks(named_weights(learn.model), learn.lottery.masks)
    figure = f'{"exact" if got==want else got}, {stray} not 0, {4*n*dls.train.bs*1000/ms:,.0f} images/s'
    return Found(got==want and stray==0, figure, 'exact, 0')
