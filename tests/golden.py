"""Figures of small runs of every kind, to the last digit.
`python golden.py --write golden.json` records them; `--check golden.json` compares, and names what differs."""
import argparse,contextlib,hashlib,io,json,os,platform,re,signal,subprocess,sys,tempfile,time,warnings
from datetime import timedelta
from functools import partial
from pathlib import Path
import numpy as np,torch
from torch import nn,distributed as dist
from fastai.basics import *
from fastai.callback.all import *
from fastai.callback.mixup import MixUp
from fastai.optimizer import OptimWrapper,SGD,Adam,ranger
from fastai.text.models.awdlstm import AWD_LSTM
import fastai,fastai_lottery
from fastai_lottery.all import *
from fastai_lottery.labels import weights_in

here = Path(__file__).resolve().parent
records = here/'golden.json'

# --- what a run shows, as plain data

def digest(tensors):
    "Sixteen digits of the SHA-256 of all names, types, shapes and bytes; None for nothing"
    if not tensors: return None
    h = hashlib.sha256()
    for n in sorted(tensors):
        t = torch.as_tensor(tensors[n]).detach().cpu().contiguous()
        h.update(f'{n} {t.dtype} {tuple(t.shape)}'.encode())
        h.update(t.reshape(-1).view(torch.uint8).numpy().tobytes())
    return h.hexdigest()[:16]

def plain(o):
    "`o` as JSON has it: floats keep every bit, since Python writes them by `repr`"
    if isinstance(o, dict): return {str(k):plain(v) for k,v in o.items()}
    if isinstance(o, (list,tuple,L)): return [plain(v) for v in o]
    return o.item() if isinstance(o, (np.generic,torch.Tensor)) else o

def of_row(row): return plain({k:v for k,v in row.items() if k!='seconds'})

def of_round(r):
    "What a `Round` shows, and the hashes of its masks, its start and what it holds"
    res = dict(row=of_row(r.row), masks=r.masks.hash(), start=digest(r.start), held=digest(r.held))
    return res if r.curve is None else dict(res, curve=plain(r.curve.to_dict('list')))

def of_learner(learn):
    "How a Learner ends: its masks and its whole state"
    lot = learn.lottery
    return dict(masks=lot.masks.hash(), left=lot.masks.n_kept, held=digest(lot.held), state=digest(state(learn.model)))

def figures(learn, rounds): return dict(rounds=[of_round(r) for r in rounds], end=of_learner(learn))

def of_ticket(t): return dict(masks=t.masks.hash(), left=t.masks.n_kept, start=digest(t.weights), held=digest(t.held))

def of_table(df):
    "A table of pandas as plain lists, without the time"
    return plain({c:df[c].tolist() for c in df if c!='seconds'})

def of_folder(d):
    "Tickets and trained weights of the rounds in a folder, whatever lottery of it they are of"
    def of(d): return dict(of_ticket(Ticket.load(d/'ticket')), state=digest(weights_in(d)[0]))
    return {f.parent.relative_to(d).as_posix():of(f.parent) for f in sorted(d.rglob('ticket.safetensors'))}

# --- data and nets

def loaders(shape=(8,), n=64, ints=None, bs=16):
    "`n` rows for training and 32 for validation, with something to learn in them"
    g = torch.Generator().manual_seed(7)
    x = torch.randint(0, ints, (n+32, *shape), generator=g) if ints else torch.randn(n+32, *shape, generator=g)
    f = x.float().reshape(n+32, -1)
    rows = list(zip(x, (f@torch.randn(f.shape[1], 4, generator=g)).argmax(1)))
    return DataLoaders(DataLoader(rows[:n], bs=bs, shuffle=True, drop_last=True), DataLoader(rows[n:], bs=32),
                       device='cpu')

def few_digits(seed=0, device='cpu', **kwargs): return digits(seed=seed, n_train=240, device=device, **kwargs)
def turned_digits(**kwargs):
    dls = few_digits(**kwargs)
    for dl in dls.loaders: dl.dataset.x = dl.dataset.x.rot90(1, (2,3))
    return dls

def mlp(): return nn.Sequential(nn.Linear(8,12), nn.ReLU(), nn.Linear(12,12), nn.ReLU(), nn.Linear(12,4))
def drop_bn(): return nn.Sequential(nn.Linear(8,12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(.3), nn.Linear(12,4))
def conv_bn():
    a,b = nn.Conv2d(1,6,3),nn.Conv2d(6,8,3)
    return nn.Sequential(a, nn.BatchNorm2d(6), nn.ReLU(), b, nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
                         nn.Linear(32,4))
def small_lenet(): return LeNet(64, 16, 10)

class Tied(nn.Module):
    "One matrix under two names"
    def __init__(self):
        super().__init__()
        self.enc,self.dec,self.head = nn.Linear(8,8),nn.Linear(8,8),nn.Linear(8,4)
        self.dec.weight = self.enc.weight
    def forward(self, x): return self.head(self.dec(self.enc(x).relu()).relu())

class Lstm(nn.Module):
    "Embedding, LSTM and a head"
    def __init__(self):
        super().__init__()
        self.emb,self.rnn,self.head = nn.Embedding(20,6),nn.LSTM(6,8,batch_first=True),nn.Linear(8,4)
    def forward(self, x): return self.head(self.rnn(self.emb(x))[0].mean(1))

class Awd(nn.Module):
    "fastai's AWD_LSTM, all its dropouts on, under a head"
    def __init__(self):
        super().__init__()
        self.body,self.head = AWD_LSTM(20, 8, 10, 2, hidden_p=.1, embed_p=.1, input_p=.1, weight_p=.4),nn.Linear(8,4)
    def reset(self): self.body.reset()
    def forward(self, x): return self.head(self.body(x).mean(1))

images = dict(model=conv_bn, dls=partial(loaders, (1,6,6)))
texts = dict(dls=partial(loaders, (6,), ints=20))
pixels = dict(model=small_lenet, dls=few_digits)

# --- Learners

def learner(model=mlp, dls=loaders, lot=None, cbs=(), seed=0, opt_func=Adam, **kwargs):
    "A Learner whose initial weights follow from `seed`"
    dls = dls()
    torch.manual_seed(seed)
    cbs = [LotteryCallback(**(lot or {})), *[o() for o in cbs]]
    return Learner(dls, model(), loss_func=CrossEntropyLossFlat(), metrics=accuracy, cbs=cbs, lr=.01, opt_func=opt_func,
                   **kwargs)

@contextlib.contextmanager
def quiet(learn):
    with learn.no_bar(), learn.no_logging(): yield learn

def lottery(learn, n_epoch=2, rounds=2, amount=.4, seed=5, **kwargs):
    with quiet(learn): return learn.fit_lottery(n_epoch, rounds=rounds, amount=amount, seed=seed, **kwargs)

asks = 'model dls lot cbs opt_func splitter'.split()    # what `learner` takes; all else is for `fit_lottery`

def play(d, test=False, frozen=False, **kwargs):
    "A lottery; the models that callbacks save go to the folder `d`"
    learn = learner(**{k:kwargs.pop(k) for k in asks if k in kwargs}, path=d)
    if test: kwargs['test_dl'] = learn.dls[2]
    if frozen: learn.freeze()
    return figures(learn, lottery(learn, **kwargs))

# --- lotteries, by what is different in them

def halves(m): return L(m[:2], m[2:]).map(params)

def found(learn, n_epoch, **kwargs):
    "Looks for a learning rate, which is no training, then trains"
    with learn.no_bar(): learn.lr_find(num_it=8, show_plot=False, suggest_funcs=())
    learn.fit_one_cycle(n_epoch, .01, **kwargs)

lotteries = dict(
    plain         = dict(),
    digits        = dict(**pixels, eval_every=2, test=True),
    augmented     = dict(model=small_lenet, dls=partial(few_digits, tfm=partial(flip_crop, pad=1))),
    batchnorm     = dict(**images, eval_every=3),
    dropout       = dict(model=drop_bn, eval_every=3),
    lstm          = dict(model=Lstm, **texts),
    awd_lstm      = dict(model=Awd, **texts),
    tied          = dict(model=Tied),
    no_seed       = dict(seed=None),
    # who competes
    global_       = dict(scope=global_, amount=.7),
    local         = dict(scope='local'),
    per_layer     = dict(scope={'0':.5, '4.weight':.25}),
    erk           = dict(scope='erk'),
    erk_floor     = dict(scope=partial(erk, power=.5, floor=9)),
    two_of_four   = dict(scope='2:4', amount=.25),
    floor         = dict(scope=partial(global_, floor=20), amount=.6, rounds=1),
    bias          = dict(lot=dict(bias=True), scope='local'),
    include       = dict(lot=dict(include=['0','2'])),
    exclude       = dict(**images, lot=dict(exclude='7')),
    frozen        = dict(splitter=halves, frozen=True),
    frozen_too    = dict(splitter=halves, frozen=True, lot=dict(frozen=True)),
    # where it ends
    one_shot      = dict(rounds=1, amount=.9, to=.25),
    to            = dict(rounds=None, amount=.3, to=.4),
    to_local      = dict(rounds=None, amount=.3, to=.4, scope='local', **images),
    tol           = dict(rounds=None, amount=.6, tol=.02, monitor='valid_loss', lr_max=.05),
    # what it goes back to
    late_3it      = dict(lot=dict(rewind_to='3it'), eval_every=2),
    late_1ep      = dict(lot=dict(rewind_to='1ep'), eval_every=2, **images),
    late_reinit   = dict(lot=dict(rewind_to='3it'), reset='random_reinit'),
    # what pruned weights are held at
    hold_init     = dict(hold='hold_init'),
    hold_variants = dict(hold='hold_init_or_zero', reset='rewind_or_zero'),
    hold_late     = dict(hold='hold_init', lot=dict(rewind_to='3it'), **images),
    hold_own      = dict(hold=lambda w_f,gen: .1*torch.randn(w_f.shape, generator=gen)),
    # how it trains
    fit           = dict(fit=Learner.fit, lr=.02),
    flat_cos      = dict(fit=Learner.fit_flat_cos, lr=.02),
    flat_cos_3it  = dict(fit=Learner.fit_flat_cos, lr=.02, lot=dict(rewind_to='3it')),
    fine_tune     = dict(fit=Learner.fine_tune, splitter=halves, freeze_epochs=1, base_lr=.02),
    fit_drops     = dict(fit=Learner.fit_drops, lr=.05, warmup=.25, wd=1e-3, opt_func=sgd),
    last_lr       = dict(fit=last_lr(Learner.fit_drops), lr=.05, reset='keep'),
    lr_find       = dict(fit=found),
    groups        = dict(splitter=halves, lr_max=slice(1e-3,1e-2)),
    sgd           = dict(opt_func=partial(SGD, mom=.9), fit=Learner.fit, lr=.05),
    sgd_of_torch  = dict(opt_func=sgd, fit=Learner.fit, lr=.05, wd=1e-3),
    fused_adam    = dict(opt_func=fused_adam),
    adamw         = dict(opt_func=partial(OptimWrapper, opt=torch.optim.AdamW)),
    ranger        = dict(opt_func=ranger, fit=Learner.fit_flat_cos, lr=.02),
    # in company
    save_model    = dict(cbs=[SaveModelCallback], n_epoch=3, lr_max=.3),
    early_stop    = dict(cbs=[partial(EarlyStoppingCallback, patience=1)], n_epoch=4, lr_max=.3),
    clip          = dict(cbs=[partial(GradientClip, .1)]),
    mixup         = dict(cbs=[MixUp]),
    accumulate    = dict(cbs=[partial(GradientAccumulation, 40)]))

criteria = ('large_final small_final magnitude_increase movement large_init small_init large_init_large_final small_init_small_final '
            'snip taylor grasp synflow random large_final_same_sign movement_diff_sign').split()
resets = ('rewind random_reinit keep permute reshuffle constant reinit_keep_sign reshuffle_keep_sign constant_keep_sign noisy '
          'rewind_or_zero').split()

runs = {n:partial(play, **kw) for n,kw in lotteries.items()}
runs |= {f'criterion_{n}':partial(play, criterion=n, rounds=1, n_epoch=1) for n in criteria}
runs |= {f'criterion_{n}_bn':partial(play, criterion=n, rounds=1, n_epoch=1, **images) for n in ('snip','grasp','synflow')}
runs |= {'criterion_own':partial(play, criterion=lambda w_i,w_f: (w_f-w_i).abs()+.1*w_f.abs())}
runs |= {f'reset_{n}':partial(play, reset=n, rounds=1, n_epoch=1, **images) for n in resets}
runs |= {'reset_own':partial(play, reset=lambda w_k,w_f: .5*(w_k+w_f)),
         'reset_noisy_2':partial(play, reset=partial(noisy, n=2))}

def run(f):
    "Add a run: a function of a folder of its own, by its name"
    runs[f.__name__] = f
    return f

# --- by hand, controls, a second lottery

@run
def verbs(d):
    "The verbs, one after the other"
    learn,res = learner(**images),[]
    with quiet(learn):
        for f,kw in ((learn.prune, dict(amount=.3, scope='local')),
                     (learn.prune, dict(amount=.3, criterion='snip', seed=2)),
                     (learn.rewind, {}), (learn.rewind, dict(reset='noisy', seed=3)), (learn.prune, dict(amount=.3, hold='hold_init')),
                     (learn.prune, dict(amount=.3, criterion='random', seed=4)), (learn.unprune, {})):
            learn.fit_one_cycle(1, .01)
            f(**kw)
            res.append(dict(verb=f.__name__, **of_learner(learn)))
        return dict(steps=res, evaluate=learn.evaluate())

@run
def two_lotteries(d):
    "The second one on a Learner knows nothing of the first"
    learn = learner(**images)
    a = figures(learn, lottery(learn, rounds=1))
    return dict(first=a, second=figures(learn, lottery(learn, rounds=1, scope='local', seed=6)),
                best=of_ticket(learn.lottery.best(tol=1.)))

ticket_controls = dict(
    same=dict(), reinit=dict(reset='random_reinit'), reinit_1=dict(reset='random_reinit', trial=1), noisy=dict(reset='noisy'),
    shuffled=dict(mask=shuffle_mask), shuffled_1=dict(mask=shuffle_mask,
                                                      trial=1), random=dict(mask=random_mask), erk=dict(mask=erk_mask),
    inverse=dict(mask=inverse_mask), no_seed=dict(seed=None, mask=shuffle_mask), fit=dict(fit=Learner.fit, lr=.02, eval_every=3))

def controls_of(d, held=False, rewind_to='init', **kwargs):
    "Trainings of the last ticket of a lottery, which goes through a file, and of its controls"
    learn,res = learner(**images, lot=dict(rewind_to=rewind_to)),{}
    lottery(learn, **kwargs)
    t = Ticket.load(learn.lottery.ticket().save(d/'ticket'))
    todo = {**ticket_controls, 'other':dict(mask=mask_of(learn.lottery.ticket(1)))}
    if held:
        todo = {k:todo[k] for k in ('same','reinit','shuffled')} | {'init':dict(hold='hold_init', mask=shuffle_mask)}
    for n,kw in todo.items():
        with quiet(learn): r = learn.fit_ticket(t, 2, **{'seed':5, **kw})
        res[n] = dict(of_round(r), end=of_learner(learn))
    return dict(ticket=of_ticket(learn.lottery.ticket()), **res)    # its file has the survivors only

runs |= {'controls':controls_of, 'controls_late':partial(controls_of, rewind_to='3it'),
         'controls_held':partial(controls_of, held=True, hold='hold_init')}

# --- folders: stopped, and killed

class Halt(Callback):
    "Ends this process, or its training, at the `at`-th training batch that it sees"
    order,run_valid,at,n,kill = 101,False,None,0,False    # of the class: what is the callback's own would come back with a checkpoint
    def after_batch(self):
        Halt.n += 1
        if Halt.n!=Halt.at: return
        if Halt.kill: os.kill(os.getpid(), signal.SIGKILL)
        raise RuntimeError('halted')

halting = dict(
    batchnorm = dict(**images, eval_every=3),
    dropout   = dict(model=drop_bn, lot=dict(rewind_to='3it'), hold='hold_init'),
    text      = dict(model=Awd, **texts))

def halts(name, d, at=None, kill=False, seed=0, rounds=2):
    "A lottery in the folder `d`, which ends at training batch `at`; another `seed` gives weights that those in the folder replace"
    kw = dict(halting[name])
    learn = learner(**{k:kw.pop(k) for k in asks if k in kw}, cbs=[Halt], seed=seed)
    Halt.n,Halt.at,Halt.kill = 0,at,kill
    try: return figures(learn, lottery(learn, n_epoch=3, rounds=rounds, path=d, **kw))
    finally: Halt.at = None

def stopped(name, d):
    "Stopped after a whole round, then in the middle of an epoch, then gone on"
    halts(name, d/'run', rounds=0)
    with contextlib.suppress(RuntimeError): halts(name, d/'run', at=6, seed=1)    # epoch 1 of round 1
    ckpt = (d/'run'/'epoch.ckpt').exists()
    return dict(halts(name, d/'run', seed=2), checkpoint=ckpt, folder=of_folder(d/'run'))

runs |= {f'stopped_{n}':partial(stopped, n) for n in halting}

def me(*args, **env):
    "This file as a program"
    path = os.pathsep.join(filter(None, [package_at(), os.getenv('PYTHONPATH')]))
    env = dict(os.environ, OMP_NUM_THREADS='1', PYTHONWARNINGS='ignore', PYTHONPATH=path, **env)
    args = [sys.executable, str(here/'golden.py'), *map(str,args)]
    return subprocess.Popen(args, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

def package_at(): return str(Path(fastai_lottery.__file__).resolve().parent.parent)

@run
def killed(d):
    "`kill -9` in the middle of epoch 1 of round 1; another process, this one, goes on"
    p = me('--halt', 'batchnorm', d/'run', 18)
    said = p.communicate(timeout=300)[0]
    if p.returncode!=-signal.SIGKILL: raise RuntimeError(f'the process was to be killed, and was not:\n{said[-3000:]}')
    if not (d/'run'/'epoch.ckpt').exists(): raise RuntimeError('the killed process left no checkpoint')
    return dict(halts('batchnorm', d/'run', seed=2), folder=of_folder(d/'run'))

# --- two processes

def distributed_learner(rank, seed=100, **kwargs):
    "Each process has half of the rows, and draws its own numbers"
    def halved():
        a,b = (dl.dataset[rank::2] for dl in loaders().loaders)
        return DataLoaders(DataLoader(a, bs=8, shuffle=True, drop_last=True), DataLoader(b, bs=16), device='cpu')
    wrapped = nn.parallel.DistributedDataParallel
    return learner(lambda: wrapped(drop_bn(), broadcast_buffers=False), halved, seed=seed+rank, **kwargs)

distributed_plays = dict(plain=dict(), late=dict(lot=dict(rewind_to='2it'), eval_every=2), snip=dict(criterion='snip'),
                         random=dict(criterion='random', reset='random_reinit'))

def one_of_two(rank, d):
    "What each of two processes does"
    dist.init_process_group('gloo', f'file://{d}/store', rank=rank, world_size=2, timeout=timedelta(seconds=60))
    res = {}
    for n,kw in distributed_plays.items():
        set_seed(rank)
        kw = dict(kw)
        learn = distributed_learner(rank, lot=kw.pop('lot', None))
        res[n] = figures(learn, lottery(learn, **kw))
    lottery(distributed_learner(rank), path=d/'run', rounds=1)
    learn = distributed_learner(rank, seed=500)    # another net, until it reads the folder's
    res['gone_on'] = figures(learn, lottery(learn, path=d/'run'))
    dist.barrier()
    dist.destroy_process_group()
    (d/f'{rank}.json').write_text(json.dumps(res))

@run
def distributed(d):
    "Two processes by gloo on the CPU; both end the same"
    ps = [me('--rank', r, d, WORLD_SIZE='2', RANK=str(r), LOCAL_RANK=str(r)) for r in range(2)]
    try: said = [p.communicate(timeout=300)[0] for p in ps]
    finally: [p.kill() for p in ps]
    if bad := [f'process {r}:\n{said[r][-3000:]}' for r in range(2) if ps[r].returncode]:
        raise RuntimeError('\n'.join(bad))
    a,b = (json.loads((d/f'{r}.json').read_text()) for r in range(2))
    return dict(rank_0=a, same=a==b)

# --- supermasks, transfer, arms, presets

@run
def supermasks(d):
    "Learned ones, each kind"
    res = {}
    for n,kw in dict(bernoulli=dict(), rescaled=dict(base=signed_constant, rescale=True),
                     popup=dict(how=partial(edge_popup, density=.3)),
                     signed=dict(how=signed_mask, base=signed_kaiming, zero_bias=False)).items():
        torch.manual_seed(1)
        model = add_supermask(small_lenet(), seed=3, **kw)
        learn = Learner(few_digits(), model, metrics=accuracy, opt_func=partial(SGD, mom=.9))
        set_seed(2)
        with quiet(learn): learn.fit(2, 1. if n=='signed' else 20.)
        res[n] = dict(evaluate=learn.evaluate(), ticket=of_ticket(supermask_ticket(model)),
                      trained=digest(state(model)))
        res[n]['bare'] = digest(state(remove_supermask(model)))
    return plain(res)

@run
def carried(d):
    "A ticket on another task"
    a,b = learner(**images),learner(**images, seed=1)
    lottery(a)
    res = {}
    for n,ws in (('ticket',None), ('trained',state(a.model))):
        t = transfer(a.lottery.ticket(), b.model, ws, exclude='7')
        with quiet(b): res[n] = dict(of_round(b.fit_ticket(t, 2, seed=4)), ticket=of_ticket(t))
    return res

def played(d, rewind_to='init', scope='global', **kwargs):
    "A played lottery, for what is trained beside it"
    learn = learner(**pixels, lot=dict(rewind_to=rewind_to))
    s = dict(n_epoch=2, fit=Learner.fit, lr=.02, eval_every=4)
    rs = lottery(learn, **s, scope=scope, test_dl=learn.dls[2], path=d/'run', **kwargs)
    return Run(learn, rs, s, lambda r: weights_in(d/'run'/f'round_{r:02d}')[0], 5)

@run
def arms_tickets(d):
    "Tickets made otherwise, and trained"
    run = played(d)
    with quiet(run.learn):
        ts = dict(one_shot=one_shot(run, 2), unmasked=unmasked(run, 1),
                  searched_3=searched(run, 2, 3), searched_keep=searched(run, 2, 2, reset='keep'))
        res = {n:dict(ticket=of_ticket(t), fit=of_round(run.fit(t))) for n,t in ts.items()}
        other = of_round(run.fit(run.ticket(1), order=0, reset='random_reinit'))
        return dict(res, other_order=other,
                    transfer=plain(ticket_transfer(run, 2, data=turned_digits, model=small_lenet, exclude='out')))

@run
def arms_late(d):
    "Searches beside a lottery that goes back to a later point"
    run = played(d, rewind_to='3it', scope={'out':.5})
    with quiet(run.learn):
        t = searched(run, 2, 3, scope={'out':.5})
        return dict(rounds=[of_round(r) for r in run.rounds], ticket=of_ticket(t), fit=of_round(run.fit(t)))

@run
def arms_measures(d):
    "Measures, and the Learner as it is afterwards"
    run = played(d)
    with quiet(run.learn):
        fs = dict(stability=ticket_stability(run, 2), instability=ticket_instability(run, 2, alphas=5, random=True),
                  dense=ticket_instability(run, 0, alphas=5), heuristic=heuristic_supermasks(run, 2),
                  levels=heuristic_supermasks(run, 0, prunes=3, criteria=['movement']),
                  learned=learned_supermasks(run, n_epoch=2, samples=2))
    return dict(plain(fs), end=of_learner(run.learn))

def of_preset(name, d, rounds=2, epochs=2):
    "A replicate of a preset, with fewer rounds and epochs"
    df = play_seed(preset(name), 0, d/'seed_00', device='cpu', rounds=rounds, epochs=epochs)
    res = dict(trainings=of_table(df), folder=of_folder(d))
    return dict(res, measures=of_table(measured(d))) if preset(name).measures else res

small_presets = ('digits criteria-tiny mask-0-tiny variants-tiny one-shot-tiny signs-tiny noise-digits gaussian-digits transfer-digits '
                 'stability-digits instability-digits supermask-digits conv-2-digits').split()
runs |= {f'preset_{n}':partial(of_preset, n) for n in small_presets}
runs |= {'preset_rates-digits':partial(of_preset, 'rates-digits', rounds=1,
                                       epochs=1)}    # its searches are many trainings

# --- what no training is needed for

@run
def foundations(d):
    "Seeds, data and the first weights of nets"
    def first(f):
        torch.manual_seed(3)
        return digest(state(f()))
    nets = dict(lenet=partial(lenet_300_100, 64), conv_2=partial(conv_net, 2, width=4),
                conv_6=partial(conv_net, 6, width=2),
                vgg=partial(vgg, 16, width=4), vgg_he=partial(vgg, 19, width=4, init=kaiming_), resnet=resnet_20, awd=Awd)
    seeds,draw = [derive(3), derive(3, 'train', 2), derive(2**40, 'mask', 1, 0)],torch.rand(3, generator=generator(3, 'prune', 1))
    dls = digits(seed=4, device='cpu')
    batch,parts = dls.one_batch(),[dl.dataset.tensors for dl in dls.loaders]
    return dict(seeds=seeds, draw=draw.tolist(), nets={n:first(f) for n,f in nets.items()},
                order=split_order(9, seed=2).tolist(),
                batch=digest(dict(enumerate(batch))), parts=[digest(dict(enumerate(o))) for o in parts])

@run
def analyses(d):
    "Tables over two trainings of one lottery, and intervals and tests over made-up figures"
    learn = learner(**images)
    rs = lottery(learn)
    lot,now = learn.lottery,state(learn.model)
    t,path = lot.ticket(),instability(learn, lot.w_i, now, 4).path
    tables = dict(layers=layer_table(t.masks), size=ticket_size(t.weights, t.masks),
                  flops=flops(learn.model, torch.ones(2,1,6,6), t.masks),
                  moved=moved(t, lot.w_i, now), signs=sign_changes(t, lot.w_i, now), angle=stability(t, lot.w_i, now),
                  overlap=overlap_table([r.masks for r in rs]), report=lot.report(full=True), path=path)
    a,b = [.91,.92,.95,.9],[.9,.89,.93,.91]
    cs = [claim_difference('more', '', a, b), claim_ratio('×', '', a, b),
          claim_match('same', '', a, b, 2.), claim_value('is', '', a, (.8,1))]
    stats = dict(interval=interval(a), geo=geo_interval(a), paired=paired(a, b), holm=holm([.01,.04,.03]).tolist(),
                 tost=tost(a, b, .05))
    tables['verdicts'] = verdicts(cs)
    return dict({n:of_table(o) for n,o in tables.items()}, stats=plain(stats), barrier=float(barrier(path)))

# --- playing them

def play_run(name):
    "The figures of a run, on one thread, in a folder of its own"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    set_seed(11)
    try:
        with tempfile.TemporaryDirectory() as d, warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter('ignore')
            return json.loads(json.dumps(plain(runs[name](Path(d)))))
    finally: torch.set_num_threads(threads)

# --- where they were recorded

def probe():
    "A digest of plain torch at work, of products, convolutions and recurrent steps: machines that round alike have the same"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gen,res = torch.Generator().manual_seed(1),{}
    wide = partial(nn.Linear, 64, 300),partial(nn.Conv2d, 1, 16, 3, padding=1),partial(nn.LSTM, 6, 8)
    nets = zip((mlp, conv_bn, *wide), ((16,8), (16,1,6,6), (60,64), (60,1,8,8), (6,16,6)))
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        for i,(f,shape) in enumerate(nets):
            m,x = f(),torch.randn(shape, generator=gen)
            for opt in (torch.optim.Adam(m.parameters()),torch.optim.SGD(m.parameters(), .1, momentum=.9)):
                for _ in range(3):
                    y = m(x)
                    torch.log_softmax(y[0] if isinstance(y, tuple) else y, -1).pow(2).mean().backward()
                    opt.step()
            res |= {f'{i}.{k}':v for k,v in m.state_dict().items()}
    torch.set_num_threads(threads)
    return digest(res)

def about():
    "What the last digits depend on"
    cpu = Path('/proc/cpuinfo')
    said = cpu.read_text() if cpu.exists() else ''
    def says(k): return m[1] if (m := re.search(rf'^{k}\s*: (.*)$', said, re.M)) else ''
    flags = [o for o in says('flags').split() if re.match('fma|avx|amx', o)]
    versions = dict(torch=torch.__version__, fastai=fastai.__version__, numpy=np.__version__,
                    python=platform.python_version())
    return dict(versions, capability=torch.backends.cpu.get_cpu_capability(), probe=probe(),
                processor=platform.processor() or platform.machine(), cpu=says('model name'), flags=flags)

def alike(a, b):
    "Do the machines of `a` and `b` give the same last digits?"
    return all(a[k]==b[k] for k in ('torch','capability','probe'))

def is_exact(old):
    "Should figures that were recorded on the machine `old` come out here to the last digit? `LOTTERY_EXACT=1` has it so anywhere"
    if os.getenv('LOTTERY_EXACT')=='1' or alike(old, now := about()): return True
    says = '; '.join(f'{k} was {old[k]}, is {now[k]}' for k in ('torch','capability','cpu','probe') if old[k]!=now[k])
    warnings.warn(f'figures are compared but for rounding, since they were recorded elsewhere: {says}')
    return False

# --- comparing

hashes = 'masks mask_hash start held state trained bare batch nets parts'.split()
# builds of torch draw dropout and the like in ways of their own; and the last net trains until a last digit is seen in the second
chancy = 'dropout awd_lstm mixup stopped_dropout stopped_text distributed foundations preset_conv-2-digits'.split()
near = dict(rtol=.02, atol=1e-6, equal_nan=True)    # some trainings make more of a last digit than others

def is_near(a, b, key):
    "Is `b` as `a`, but for rounding?"
    if type(a) is not type(b) or isinstance(a, (str,bool,type(None))): return a==b
    if key.startswith('es_'): return True                                # a curve may have its least elsewhere
    if 'accuracy' in key or 'density' in key:
        return bool(np.isclose(a, b, rtol=0, atol=.05, equal_nan=True))    # a few items or weights
    return a==b if isinstance(a, int) else bool(np.isclose(a, b, **near))

def is_alike(a, b, key): return isinstance(a, float) and isinstance(b, float) or is_near(a, b, key)
def is_same(a, b, key): return type(a) is type(b) and (a==b or a!=a and b!=b)

def compare(name, want, got, exact):
    "Where the run `name` differs, in words. Without `exact`, figures may round otherwise; where torch draws, counts and texts count"
    return difference(want, got, is_same if exact else is_alike if name in chancy else is_near, () if exact else hashes)

def difference(want, got, same=is_same, skip=(), at='', key=''):
    "Where `got` first differs from `want`, in words; None if nowhere"
    if key in skip: return None
    if isinstance(want, dict) and isinstance(got, dict):
        if set(want)!=set(got):
            return f"{at or 'it'} has more: {sorted({*got}-{*want})}, and lacks: {sorted({*want}-{*got})}"
        todo = [(want[k],got[k],f'{at}.{k}' if at else k,k) for k in want]
    elif isinstance(want, list) and isinstance(got, list):
        if len(want)!=len(got): return f'{at} has {len(got)} entries, and had {len(want)}'
        todo = [(a,b,f'{at}[{i}]',key) for i,(a,b) in enumerate(zip(want, got))]
    else: return None if same(want, got, key) else f'{at} was {want!r} and is now {got!r}'
    return next((o for a,b,where,k in todo if (o := difference(a, b, same, skip, where, k))), None)

# --- the program

def write(f, names):
    old = json.loads(f.read_text()) if f.exists() and names else dict(runs={})
    res,t0 = dict(about=about(), runs={**old['runs']}),time.perf_counter()
    for n in names or runs:
        t = time.perf_counter()
        res['runs'][n] = play_run(n)
        print(f'{time.perf_counter()-t:6.2f} s  {n}', flush=True)
    lines = [f'  {json.dumps(n)}: {json.dumps(o)}' for n,o in res['runs'].items()]
    f.write_text('{"about": '+json.dumps(res['about'])+',\n "runs": {\n'+',\n'.join(lines)+'\n}}\n')    # a line a run
    print(f"{time.perf_counter()-t0:6.1f} s  {f}, {f.stat().st_size} bytes")

def check(f, names, exact):
    old,bad = json.loads(f.read_text()),0
    exact = exact or is_exact(old['about'])
    print(f"compared {'to the last digit' if exact else 'but for rounding'}")
    for n in names or old['runs']:
        if (o := compare(n, old['runs'][n], play_run(n), exact)) is None: continue
        bad += 1
        print(f'{n}: {o}', flush=True)
    print(f"{bad} of {len(names or old['runs'])} runs differ")
    return bad

def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('names', nargs='*', help='runs; all by default')
    p.add_argument('--write', type=Path, help='record in this file')
    p.add_argument('--check', type=Path, help='compare with this file')
    p.add_argument('--exact', action='store_true', help='to the last digit, wherever it was recorded')
    args = p.parse_args()
    print(f'fastai_lottery of {package_at()}')
    if args.write: write(args.write, args.names)
    if args.check: sys.exit(bool(check(args.check, args.names, args.exact)))

if __name__=='__main__':
    torch.set_num_threads(1)
    if sys.argv[1:2]==['--halt']: halts(sys.argv[2], Path(sys.argv[3]), at=int(sys.argv[4]), kill=True)
    elif sys.argv[1:2]==['--rank']: one_of_two(int(sys.argv[2]), Path(sys.argv[3]))
    else: main()
