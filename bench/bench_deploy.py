"A resnet18 on small images in each way that it can be served, one thread"
import time
import torch
from fastai.basics import CrossEntropyLossFlat,accuracy,set_seed
from torchvision.models import resnet18
import fastai_lottery.report    # `deploy_report`, patched on `Learner`
from common import images,interleave,learner,show,sized

def small(): return learner(images(320, (3,sized(64,32),sized(64,32)), bs=32, valid=200), resnet18(num_classes=10),
                            loss_func=CrossEntropyLossFlat(), metrics=accuracy)

def bench_report():
    "The whole table where the extra `deploy` is installed; what eager torch takes alone, where it is not"
    set_seed(0)
    learn = small()
    try: df = learn.deploy_report(repeats=sized(15,1), threads=1)
    except ImportError as e:
        print(f'\n{e}\nWithout it, eager torch alone:')
        return bench_eager()
    cols = 'params madds mb ms_1 ms_1_lo ms_1_hi ms_32 ms_32_lo ms_32_hi agreement difference'.split()
    print('\nresnet18, one thread\n'+df[cols].round(4).to_string())
    assert df.loc[('net','ONNX'),'agreement']==1

def bench_eager():
    "Eager torch, and the memory format that CPUs like best"
    def arm(n, fmt):
        m = resnet18(num_classes=10).eval().to(memory_format=fmt)
        x = torch.randn(n, 3, sized(64,32), sized(64,32)).contiguous(memory_format=fmt)
        def f():
            t = time.perf_counter()
            with torch.inference_mode(): m(x)
            return 1000*(time.perf_counter()-t)
        return f
    for n in sized((1,32), (1,2)):
        ms = interleave({'eager':arm(n, torch.contiguous_format), 'channels_last':arm(n, torch.channels_last)})
        show(f'resnet18, {n} rows', ms, 'eager')
        assert len(ms)==2
