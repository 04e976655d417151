"Checks of `gpu.py`: masks are exact, whatever trains the net, and the same as on the CPU"
from functools import partial
import torch
from torch._dynamo.utils import counters
from fastai.basics import Adam,Callback,ranger
from fastai.callback.channelslast import ChannelsLast
from fastai.optimizer import OptimWrapper
from fastai_lottery.all import fused_adam,LeNet,lenet_300_100,make_masks,Masks,resnet_20
from common import sized
from gpu_kit import Found,Lacks,Overflow,Place,batches,check,half,seeded,watched

def of_torch(opt, **kwargs): return partial(OptimWrapper, opt=partial(opt, **kwargs))
optimizers = {
    'fused SGD':of_torch(torch.optim.SGD, momentum=.9, fused=True),
    'foreach SGD':of_torch(torch.optim.SGD, momentum=.9, weight_decay=.01, foreach=True),
    'fused Adam':fused_adam,
    'fused AdamW':of_torch(torch.optim.AdamW, fused=True),
    'foreach AdamW':of_torch(torch.optim.AdamW, foreach=True),
    "fastai's Adam":Adam,
    "fastai's ranger":ranger}

def lenet(place, **kwargs):
    "A LeNet and batches for it, watched"
    make,shape = sized((lenet_300_100,(1,28,28)), (partial(LeNet, 64, 40, 20, 10),(1,8,8)))
    wrap = kwargs.pop('wrap', lambda m: m)
    return watched(place, wrap(seeded(make, place)), batches(place, shape, bs=sized(60, 16)), **kwargs)

def convolutions(place, **kwargs):
    """A residual net with batch norm, watched. Not of fewer than 16 channels: oneDNN writes beyond its memory in the backward of a 1x1
    convolution with a stride in channels_last then (uxlfoundation/oneDNN#6035)"""
    net = seeded(partial(resnet_20, width=16), place)
    return watched(place, net, batches(place, (3,sized(32, 8),sized(32, 8)), bs=sized(64, 8)), **kwargs)

@check(*optimizers)
def by_optimizer(place, case):
    "masks exact: {}"
    return lenet(place, opt_func=optimizers[case]).found()

@check('fused Adam', 'fused SGD', "fastai's Adam")
def in_fp16(place, case):
    "masks exact: fp16 with skipped steps, {}"
    amp,its = half(place, 'fp16'),{1,4,5}
    over = Overflow(its, amp)
    seen = lenet(place, opt_func=optimizers[case], cbs=[amp], last=[over])
    return seen.found(its<=over.skipped, f', {len(over.skipped)} skipped')

@check('fp16','bf16')
def in_half_with_convolutions(place, case):
    "masks exact: {}, convolutions and batch norm"
    return convolutions(place, cbs=[half(place, case)]).found()

@check('fp32','bf16')
def in_channels_last(place, case):
    "masks exact: channels_last, {}"
    return convolutions(place, cbs=[ChannelsLast(), *([] if case=='fp32' else [half(place, case)])]).found()

@check()
def in_a_stream(place):
    "masks exact: in a stream of its own"
    with place.stream(): return lenet(place).found()

class Begin(Callback):
    "Says where a step begins: what a CUDA graph gave in the last one may go"
    run_valid = True
    def before_batch(self): torch.compiler.cudagraph_mark_step_begin()

@check('default','reduce-overhead')
def compiled(place, case):
    "masks exact: torch.compile, {}"
    if place.cuda and torch.cuda.get_device_capability()<(7,0): raise Lacks('torch.compile needs compute 7.0')
    torch._dynamo.reset()
    counters.clear()
    # CUDA graphs give gradients in memory of their own, so they go by an optimizer that sets them to None, as torch's do
    try: seen = lenet(place, wrap=partial(torch.compile, mode=case), cbs=[Begin()])
    finally: torch._dynamo.reset()
    frames,skips = counters['frames']['ok'],counters['inductor']['cudagraph_skips']
    plain = case=='default' or not place.cuda
    says = '' if plain else f', {skips} without a graph'
    return seen.found(frames>0 and (plain or skips==0), says)

@check()
def noticed(place):
    "a mask that is broken on purpose is noticed"
    seen = lenet(Place(place.device, broken=True))
    return Found(seen.wrong==1 and seen.leaks>0, f'{seen.wrong} wrong bit, {seen.leaks} not 0', '1, more than 0')

dtypes = torch.float32,torch.float64,torch.float16,torch.bfloat16
def differ(place, scope, dtype):
    "Do three prunes of scores with many ties give other masks than on the CPU?"
    g = torch.Generator().manual_seed(0)
    n = sized(512, 32)
    scores = {k:(8*torch.randn(s, generator=g)).round().div(8).abs().to(dtype) for k,s in dict(a=(n,n), b=(n,2,4,4), c=(3,n)).items()}
    def after(device):
        there,masks = {k:s.to(device) for k,s in scores.items()},Masks.ones(scores).to(device)
        for _ in range(3): masks = make_masks(there, masks, .2, scope)
        return masks
    here,there = after('cpu'),after(place.device)
    if any(m.device.type!=torch.device(place.device).type for m in there.values()): return True
    return here!=there

@check('global','local','erk','2:4')
def as_on_the_cpu(place, case):
    "prunes are the CPU's, ties and four dtypes: scope {}"
    bad = [str(o)[6:] for o in dtypes if differ(place, case, o)]
    return Found(not bad, f'{len(bad)} dtypes differ'+''.join(f', {o}' for o in bad), '0')
