"A ticket's file: its size against the entropy of its masks, and time and memory against safetensors' own"
import os,tempfile
from pathlib import Path
from types import SimpleNamespace
import psutil,torch
from safetensors.torch import load_file,save_file
from torchvision.models import resnet18
from fastai_lottery.all import lenet_300_100,LotteryCallback,Masks,prunable,Ticket
from fastai_lottery.packing import least_bytes
from fastai_lottery.resets import state
from bench_memory import Peak,ms_of
from common import images,interleave,learner,show,sized

def chance(weights, density, g): return Masks({n:torch.rand(w.shape, generator=g)<density for n,w in weights.items()})

def bench_size():
    m,g = resnet18(),torch.Generator().manual_seed(0)
    ws,names = state(m),prunable(m)
    rest = sum(v.numel()*v.element_size() for n,v in ws.items() if n not in names)
    print(f'\nresnet18, {sum(ws[n].numel() for n in names):,} weights that compete; {rest:,} bytes of others')
    with tempfile.TemporaryDirectory() as d:
        for density in sized((.5,.2,.1,.036,.01), (.1,)):
            t = Ticket(chance({n:ws[n] for n in names}, density, g), ws)
            n,least = t.save(f'{d}/t').stat().st_size,least_bytes(t.masks)+rest
            print(f'  {density:>5.1%}: {n/1e6:7.3f} MB, × {n/least:.4f} of the bound; with all starting weights '
                  f'{t.save(f"{d}/t", dense=True).stat().st_size/1e6:.1f} MB')

def synced(ws, f):
    "safetensors' own file, on the disk as ours is"
    save_file(ws, f)
    with open(f, 'rb+') as o: os.fsync(o.fileno())

def in_memory(f): return {k:v.clone() for k,v in load_file(f).items()}    # it only maps the file

class Anonymous(Peak):
    "Memory that is the process's own"
    def __enter__(self):
        m = psutil.Process()
        def own(): return SimpleNamespace(rss=m.memory_info().rss-getattr(m.memory_info(), 'shared', 0))
        self.on,self.rss,self.base,self.peak = True,own,own().rss,own().rss
        self.start()
        return self

def extra(f, n):
    "Bytes a weight that `f` takes beside what it gives; pages of the file, which the system lends, are left out"
    p = Anonymous()
    with p: res = f()
    left = p.rss().rss-p.base
    del res
    return (p.peak-p.base-max(left, 0))/n

def bench_time_and_memory():
    n,g = sized(100_000_000, 100_000),torch.Generator().manual_seed(0)
    ws = {f'{i}':torch.randn(n//10, generator=g) for i in range(10)}
    with tempfile.TemporaryDirectory() as d:
        own = f'{d}/own.safetensors'
        for density,dense in sized(((.5,False),(.2,False),(.1,False),(.2,True)), ((.2,False),)):
            t,f = Ticket(chance(ws, density, g), ws),f'{d}/t'
            what = f'{n/1e6:g} M weights, {density:.0%} kept'+', all starting weights'*dense
            def save(): t.save(f, dense=dense)
            def load(): return Ticket.load(f)
            for k,theirs,ours in (('save',lambda: synced(ws, own),save),('load',lambda: in_memory(own),load)):
                show(f'{k} {what}', interleave({'safetensors':ms_of(theirs), 'Ticket':ms_of(ours)}, 5), 'safetensors')
                print(f'  extra memory: {extra(ours, n):.2f} bytes a weight')

def sizes(d): return {f.relative_to(d).as_posix():f.stat().st_size for f in sorted(d.rglob('*.safetensors'))}

def bench_folder():
    "What a round costs on the disk: LeNet-300-100 played, and what each file would be at least"
    with tempfile.TemporaryDirectory() as d:
        l,d = learner(images(600, (1,28,28)), lenet_300_100(), cbs=LotteryCallback(rewind_to='1it')),Path(d)
        with l.no_bar(): rs = l.fit_lottery(1, rounds=sized(10, 1), path=d, seed=0)
        has,names = sizes(d),list(rs[0].masks)
        rest = sum(v.numel()*v.element_size() for n,v in state(l.model).items() if n not in names)
        start = has['init.safetensors'],has['start.safetensors']
        print(f"\nLeNet-300-100 in a folder: init and start {start} bytes")
        for r in rs:
            k,least = f"round_{r['round']:02d}/",least_bytes(r.masks)+rest
            got = has[k+'ticket.safetensors']+has[k+'weights.safetensors']
            n = 9*r.masks.numel
            print(f"  round {r['round']:>2}: {r['density']:.1%} {got:>9,} bytes, × {got/least:.3f} of what is needed; was {n:>9,}")
