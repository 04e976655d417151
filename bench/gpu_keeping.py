"Checks of `gpu.py`: what is kept is kept bit for bit: snapshots, rewinds, tickets, and runs that are killed"
import contextlib,os,signal,subprocess,sys,tempfile
from pathlib import Path
import torch
from torch import nn
from fastai.basics import Callback,accuracy
from fastai_lottery.all import LotteryCallback,Ticket,resnet_20,state
from common import learner
from gpu_kit import Found,Place,batches,check,seeded

def bits(t): return t.dtype,tuple(t.shape),t.detach().cpu().contiguous().view(-1).view(torch.uint8)
def same(a, b):
    "Are two tensors equal in every bit, wherever they lie?"
    (*a,x),(*b,y) = bits(a),bits(b)
    return a==b and torch.equal(x, y)
def differing(a, b):
    "How many tensors of two states differ, or are in one alone"
    return sum(k not in a or k not in b or not same(a[k], b[k]) for k in {*a,*b})

class Note(Callback):
    "The state before iteration `it`, on the CPU"
    order,run_valid = 0,False
    def __init__(self, it): self.it,self.seen = it,None
    def before_batch(self):
        if self.learn.train_iter==self.it and self.seen is None:
            self.seen = {k:v.cpu() for k,v in state(self.learn.model).items()}

def convolutions(place, rewind_to='init', **kwargs):
    "A Learner of a net with batch norm, whose statistics belong to a snapshot, too"
    net = seeded(lambda: resnet_20(width=4), place)
    return learner(batches(place, (3,8,8)), net, cbs=[LotteryCallback(rewind_to), *kwargs.pop('cbs', [])], **kwargs)

@check()
def rewound(place):
    "snapshot at iteration 3 and two rewinds: equal bit for bit"
    note = Note(3)
    learn,bad = convolutions(place, '3it'),0
    learn.fit(2, 1e-2, cbs=note)
    for amount in (.5,.2):
        masks = learn.prune(amount).to('cpu')
        learn.rewind()
        want = {k:torch.where(masks[k], v, torch.zeros_like(v)) if k in masks else v for k,v in note.seen.items()}
        bad += differing(want, state(learn.model))
        learn.fit(1, 1e-2)
    return Found(bad==0, f'{bad} of {2*len(note.seen)} tensors differ', '0')

@check()
def read_again(place):
    "a ticket saved and read again: equal bit for bit"
    learn = convolutions(place, '3it')
    with learn.no_bar(): learn.fit_lottery(1, rounds=1, lr_max=1e-2, seed=0)
    a = learn.lottery.ticket(1)
    with tempfile.TemporaryDirectory() as d: b = Ticket.load(a.save(Path(d)/'ticket', dense=True))
    n = differing(a.masks, b.masks)+differing(a.weights, b.weights)
    return Found(n==0 and len(b.weights)>0, f'{n} of {len(b.masks)+len(b.weights)} tensors differ', '0')

@check()
def draws_nothing(place):
    "random prunes and resets leave the device's generator"
    learn = convolutions(place)
    learn.fit(1, 1e-2)
    def now(): return torch.cuda.get_rng_state() if place.cuda else torch.get_rng_state()
    was = now()
    for reset in ('random_reinit','permute','noisy'):
        learn.prune(.2, 'random', seed=1)
        learn.rewind(reset, seed=1)
    ok = torch.equal(was, now())
    return Found(ok, 'the same state' if ok else 'another state', 'the same')

# ---- a run that is killed

class Dies(Callback):
    "Counts the batches that this process has trained, and kills it at the `at`-th"
    order,run_valid = 101,False
    at,n = None,0 # Of the process: a callback's own would come back with a checkpoint
    def after_batch(self):
        Dies.n += 1
        if Dies.n==Dies.at: os.kill(os.getpid(), signal.SIGKILL)

@contextlib.contextmanager
def deterministic():
    "Only algorithms that give the same bits each time; needs CUBLAS_WORKSPACE_CONFIG, which `gpu.py` sets before torch comes"
    was = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try: yield
    finally: torch.use_deterministic_algorithms(was)

def run(place, folder):
    "A lottery with a folder, of a net with dropout, whose random numbers are the device's"
    def make(): return nn.Sequential(nn.Flatten(), nn.Linear(64,64), nn.ReLU(), nn.Dropout(.3), nn.Linear(64,10))
    dls = batches(place, (1,8,8))
    learn = learner(dls, seeded(make, place), metrics=accuracy, cbs=[LotteryCallback('2it'), Dies()])
    with deterministic(), learn.no_bar(): learn.fit_lottery(3, rounds=2, lr_max=1e-2, seed=0, path=folder)
    return learn

def die(device, folder, at):
    "In a process of its own: the run, killed at batch `at`"
    Dies.at = at
    run(Place(device), folder)

def killed(place, folder, at):
    "Play the run in another process, which is killed"
    code = f'import gpu_keeping; gpu_keeping.die({place.device!r}, {str(folder)!r}, {at})'
    p = subprocess.run([sys.executable,'-c',code], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=240)
    if p.returncode!=-signal.SIGKILL: raise RuntimeError(f'the run was to be killed; it ended with {p.returncode}: {p.stderr[-300:]}')

def counted(place, folder):
    "The run, and how many batches it trained"
    n = Dies.n
    return run(place, folder),Dies.n-n

@check()
def goes_on(place):
    "a killed run with dropout goes on: equal bit for bit"
    with tempfile.TemporaryDirectory() as d:
        whole,n = counted(place, Path(d)/'whole')    # 12 batches, and twice 10 from the rewind point on
        killed(place, Path(d)/'killed', 17)          # of the second round's first epoch 2 batches are done, of its second 3
        again,rest = counted(place, Path(d)/'killed')
    bad = differing(state(whole.model), state(again.model))+differing(whole.lottery.masks, again.lottery.masks)
    a,b = (o.lottery.report(full=True).drop(columns='seconds', errors='ignore') for o in (whole,again))
    figure = f'{bad} tensors differ, {"equal" if a.equals(b) else "other"} rows, {rest} of {n} left'
    return Found(bad==0 and a.equals(b) and (rest,n)==(18,32), figure, '0, equal, 18 of 32')
