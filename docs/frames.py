"""Compute what "What a ticket looks like" shows round by round, into nbs/results.

Of single weights, from a folder of the lottery of one seed:
    lottery run lenet-mnist --epochs 4 --replicates 1 --data DIR --out RUN
    python docs/frames.py weights RUN/seed_00
Of channels, from a lottery on digits that it plays itself, in some 20 seconds:
    python docs/frames.py channels"""
import json,sys,tempfile
from pathlib import Path
from fastai.vision.all import *
from fastai_lottery.all import *
from fastai_lottery.labels import checked_rounds

results = Path(__file__).resolve().parent.parent/'nbs'/'results'
digits64 = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_'

def size_of(save):
    "Bytes of the file that `save(path)` writes"
    with tempfile.TemporaryDirectory() as d: return Path(save(Path(d)/'t')).stat().st_size

def packed(counts):
    "Neurons that read each pixel as a level from 0, none, to 7, as many as read any; two levels a character"
    ls = -(-7*counts//counts.max())
    return ''.join(digits64[8*a+b] for a,b in ls.view(-1,2).tolist())

# --- single weights: LeNet-300-100 on MNIST

def weight_frame(folder, row):
    "A round: what is left of each layer, which pixels the first one reads, the ticket's file"
    t = Ticket.load(folder/f"round_{row['round']:02d}"/'ticket.safetensors')
    counts = next(iter(t.masks.values())).sum(0)
    return dict(round=row['round'], accuracy=round(row.test_accuracy, 4), kept=layer_table(t.masks).kept[:-1].tolist(),
                bytes=size_of(t.save), mask_hash=t.masks.hash(), read=int((counts>0).sum()), pixels=packed(counts))

def weights(folder):
    "The frames of the lottery in `folder`, which is that of one seed of a preset with a fully connected net"
    folder,df = Path(folder),checked_rounds(folder)
    if 'test_accuracy' not in df:
        raise ValueError(f"{str(folder)!r} has no rounds with a test accuracy: give the folder seed_00 of a `lottery run`")
    masks = Ticket.load(folder/'round_00'/'ticket.safetensors').masks
    layers = {n.removesuffix('.weight'):m.numel() for n,m in masks.items()}
    return dict(layers=layers, frames=[weight_frame(folder, o) for _,o in df.iterrows()])

# --- channels: a small convolutional net on digits

def conv_net(): return nn.Sequential(ConvLayer(1,32), ConvLayer(32,64,stride=2), ConvLayer(64,64),
                                     nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256,10))
def convs(m): return [o.out_channels for o in m.modules() if isinstance(o, nn.Conv2d)]

def channel_frame(lot, k, accuracy):
    "A round: the net without its dead channels"
    lot.load(k)
    model,masks,xb = lot.learn.model,lot.ticket(k).masks,lot.learn.dls.one_batch()[0]
    small = shrink(model, masks, xb) if k else model
    def save(f): return save_shrunk(f, small, conv_net(), masks, xb)
    return dict(round=k, accuracy=round(accuracy, 4), channels=convs(small),
                params=sum(p.numel() for p in small.parameters()), bytes=size_of(save))

def channels(rounds=6, n_epoch=8):
    "The frames of a lottery over channels, 30 % of them a round"
    set_seed(0)
    learn = Learner(digits(seed=0), conv_net(), metrics=accuracy, cbs=LotteryCallback(units='channels'))
    with learn.no_bar(), learn.no_logging():
        learn.fit_lottery(n_epoch, rounds=rounds, amount=.3, lr_max=.01, seed=0, keep='all')
    df = learn.lottery.report()
    return dict(layers={f'conv {i}':n for i,n in enumerate(convs(conv_net()), 1)},
                frames=[channel_frame(learn.lottery, k, a) for k,a in zip(df['round'], df.accuracy)])

# --- files

def text(d):
    "JSON with a frame a line"
    head,frames = json.dumps(d['layers']),',\n  '.join(json.dumps(o, separators=(',',':')) for o in d['frames'])
    return f'{{"layers":{head},\n "frames":[\n  {frames}]}}\n'

def main(kind='', *folder):
    makes = dict(weights=weights, channels=channels)
    if kind not in makes or len(folder)!=(kind=='weights'): sys.exit(__doc__)
    f = results/f'frames-{kind}.json'
    f.write_text(text(makes[kind](*folder)), encoding='utf-8')
    print(f'{f.relative_to(results.parent.parent)}: {f.stat().st_size} bytes')
if __name__=='__main__': main(*sys.argv[1:])
