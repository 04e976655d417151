"""Units of many nets: any subset can be taken out, or they are left out by name; structured lotteries end to end.
`python -m pytest -m extra`, with Torch-Pruning"""
import re
from functools import partial
import pytest,torch
from torch import nn
import torch.nn.functional as F
from nets import *
from unit_zoo import *
import torchvision.models as tv
from fastai.collab import EmbeddingDotBias
from fastai.tabular.model import TabularModel
from fastai.vision.learner import create_vision_model
from fastai.vision.models import resnet18
from fastai.vision.models.xresnet import xresnet18
from fastai_lottery.units import *
from fastai_lottery.channels import net_copy
from fastai_lottery.coupled import *
from fastai_lottery.removal import *
from fastai_lottery.nets import conv_net,resnet_20,vgg
for _n in [o for o in globals() if o.startswith('test')]: del globals()[_n]
pytestmark = pytest.mark.extra
need = "needs {}: pip install 'fastai_lottery[deploy,text]'"
pytest.importorskip('torch_pruning', reason=need.format('torch-pruning'))

# --- the law: a random subset masked, and taken out

def stirred(m, gen):
    "Everything at random, in double precision: at their first values many errors hide"
    m = net_copy(m).double().eval()
    for n,t in [*m.named_parameters(), *m.named_buffers()]:
        if not t.is_floating_point(): continue
        r = torch.randn(t.shape, generator=gen, dtype=t.dtype)
        if n.endswith('running_var'): t.data.copy_(.5+r.abs())
        elif t.ndim==1: t.data.copy_(1+.3*r if n.endswith('weight') else .3*r)
    return m

def leaves(o):
    if torch.is_tensor(o): return [o]
    if not isinstance(o, (dict,list,tuple)): return []
    return [t for v in (o.values() if hasattr(o, 'values') else o) for t in leaves(v)]

def subset(units, gen):
    "Between one and all but one of each group are gone"
    def one(n): return torch.randperm(n, generator=gen)>=int(torch.randint(min(1, n-1), n, (1,), generator=gen))
    return Masks({g:one(n) if g not in units.constant else torch.ones(n, dtype=torch.bool) for g,n in units.sizes.items()})

def said(m, xb, forward):
    "Outputs in double precision; in single precision of a net that insists on it, rounded to six digits"
    def of(m, kind): return leaves(forward(m, kind(xb)) if forward else m(*kind(xb)))
    def cast(t): return lambda xb: tuple(o.to(t) if torch.is_tensor(o) and o.is_floating_point() else o for o in xb)
    with torch.no_grad(),torch.random.fork_rng():
        torch.manual_seed(0)
        try: return of(m, cast(torch.double))
        except RuntimeError: return [(t.double()*1e5).round()/1e5 for t in of(net_copy(m).float(), cast(torch.float))]

def far_apart(m, units, xb, gen, forward=None):
    "Largest difference of the outputs of the masked net and of the small one, as a share of the largest output"
    m,alive = stirred(m, gen),subset(units, gen)
    units.masks(alive).apply_(m)
    small = without(m, units, alive)
    n,old = [sum(p.numel() for p in o.parameters()) for o in (small,m)]
    assert n<old or set(units.sizes)<=units.constant
    a,b = [said(o, xb, forward) for o in (m,small)]
    assert all(s.isfinite().all() for s in a) and any(s.std()>0 for s in a if s.numel()>1)
    return max(float((s-t).abs().max()/s.abs().max()) for s,t in zip(a, b) if s.is_floating_point())

def left_of(units): return {n:why for n,why in units.left.items() if why!='an output of the net'}

def holds(m, xb, left=(), forward=None, n=2):
    "The law, for one net; `left`: who is left out, a part of the name to a part of the reason"
    gen = generator(0, 'zoo')
    units = checked_units(channel_units(m, xb, forward), m, xb, forward)
    for name,why in left_of(units).items():
        assert any(k in name and re.search(v, why) for k,v in dict(left).items()), (name,why)
    for k in dict(left): assert any(k in name for name in left_of(units)), f'{k} is in'
    for _ in range(n*bool(units.sizes)): assert far_apart(m, units, xb, gen, forward)<1e-9
    return units

moves,opaque = 'would not be 0 where they are read','units are not followed'
ln,unclear = 'LayerNorm mixes channels','is not understood|view size|size of tensor|shape'
def small_resnet(block=tv.resnet.BasicBlock, n=(1,1), **kw): return tv.ResNet(block, [*n,1,1], num_classes=4, **kw)
small_tv = dict(
    resnet=small_resnet, bottleneck=partial(small_resnet, tv.resnet.Bottleneck),
    resnext=partial(small_resnet, tv.resnet.Bottleneck, groups=8, width_per_group=4),
    mobilenet_v2=partial(tv.mobilenet_v2, width_mult=.25), mobilenet_v3=partial(tv.mobilenet_v3_small, width_mult=.3),
    mnasnet=tv.mnasnet0_5, squeezenet=tv.squeezenet1_1,
    densenet=lambda: tv.DenseNet(8, (2,2), 16, num_classes=4),
    regnet=lambda: tv.RegNet(tv.regnet.BlockParams.from_init_params(2, 16, 20., 2., 8), num_classes=4),
    regnet_se=lambda: tv.RegNet(tv.regnet.BlockParams.from_init_params(2, 16, 20., 2., 8, se_ratio=.25), num_classes=4))

@pytest.mark.parametrize('name', small_tv)
def test_nets_of_torchvision_are_right(name):
    torch.manual_seed(0)
    holds(small_tv[name]().eval(), images(side=48), n=1)

def test_googlenet_is_right():
    holds(tv.googlenet(weights=None, init_weights=False, aux_logits=False, num_classes=4).eval(), images(side=32), n=1)

def test_shufflenet_is_refused_by_name():
    u = holds(tv.shufflenet_v2_x0_5().eval(), images(side=32), {'':'.'}, n=1)
    assert u.numel<u.ones().numel+1 and left_of(u)

ours = dict(conv2=lambda: conv_net(2, width=16), conv4=lambda: conv_net(4, width=16),
            conv6=lambda: conv_net(6, width=16),
            resnet20=lambda: resnet_20(), vgg=lambda: vgg(16, width=8))
sides = dict(conv2=32, conv4=32, conv6=32)
@pytest.mark.parametrize('name', ours)
def test_our_nets_are_right(name):
    torch.manual_seed(0)
    m = ours[name]().eval()
    assert not left_of(holds(m, images(side=32), n=1))

fastais = dict(
    xresnet18=(lambda: xresnet18(n_out=4), lambda: images(side=48)),
    vision=(lambda: create_vision_model(resnet18, 4, pretrained=False), lambda: images(side=48)),
    tabular=(lambda: TabularModel([(5,3),(4,2)], 3, 2, [20,10]), lambda: (torch.randint(0,4,(4,2)), torch.randn(4,3))))
@pytest.mark.parametrize('name', fastais)
def test_nets_of_fastai_are_right(name):
    torch.manual_seed(0)
    m,xb = fastais[name]
    holds(m().eval(), xb(), n=1)

@pytest.mark.parametrize('name', ['test_resnet','test_efficientnet','test_vit','test_byobnet','test_convnext'])
def test_nets_of_timm(name):
    timm = pytest.importorskip('timm', reason=need.format('timm'))
    torch.manual_seed(0)
    m = timm.create_model(name, num_classes=4).eval()
    u = holds(m, images(side=m.default_cfg['input_size'][1]//2 if name!='test_vit' else 160),
              {'':'.'} if left_any(name) else (), n=1)
    if 'vit' in name:
        assert any(g.endswith('attn') for g in u.sizes) and any('fc1' in g for g in u.sizes), 'heads and hidden neurons'

def left_any(name): return name in ('test_vit','test_convnext')

between = dict(
    relu=nn.ReLU, gelu=nn.GELU, silu=nn.SiLU, hardswish=nn.Hardswish, elu=nn.ELU,
    tanh=nn.Tanh, prelu=lambda: nn.PReLU(16),
    prelu_one=nn.PReLU, dropout=nn.Dropout2d, pool=lambda: nn.MaxPool2d(2), blur=lambda: nn.AvgPool2d(3, 1, 1),
    up=lambda: nn.Upsample(scale_factor=2), inorm=lambda: nn.InstanceNorm2d(16),
    inorm_affine=lambda: nn.InstanceNorm2d(16, affine=True),
    groups=lambda: nn.Sequential(nn.GroupNorm(4, 16), nn.ReLU()), normed=lambda: Fn(partial(F.normalize, dim=1)),
    cast=lambda: Fn(lambda x: x.float()+torch.zeros(1, dtype=torch.float32)),
    autocast=lambda: Fn(lambda x: torch.autocast('cpu', torch.bfloat16)(F.relu)(x)))
@pytest.mark.parametrize('name', between)
def test_what_lies_between_two_convolutions(name):
    torch.manual_seed(0)
    u = holds(around(between[name]()).eval(), images())
    assert not left_of(u) and set(u.sizes)=={'0','2'} and u.sizes['0']==(4 if name=='groups' else 16)

mixing = dict(
    flip=(lambda x: x.flip(1), moves), roll=(lambda x: x.roll(1, 1), moves), softmax=(lambda x: x.softmax(1), moves),
    mean=(lambda x: x-x.mean(1, keepdim=True), moves), shuffle=(nn.ChannelShuffle(4), moves),
    lrn=(nn.LocalResponseNorm(3), 'mixes'),
    ln=(lambda x: F.layer_norm(x, x.shape[1:]), moves), gn=(lambda x: F.group_norm(x, 1), moves),
    sort=(lambda x: x.sort(1)[0], moves), cumsum=(lambda x: x.cumsum(1), moves),
    noise=(lambda x: x+torch.randn(1), moves),
    each=(lambda x: x+torch.arange(x.shape[1], dtype=x.dtype)[:,None,None], 'outputs would change'),
    few=(lambda x: x if x.shape[1]>4 else 2*x, 'outputs would change'),
    sixteen=(lambda x: x+torch.arange(16.)[:,None,None], 'size of tensor'),
    best=(lambda x: x*(x>=x.topk(3, 1)[0][:,-1:]), 'outputs would change'),
    picked=(lambda x: x[:,torch.arange(15,-1,-1)], moves))
@pytest.mark.parametrize('name', mixing)
def test_what_mixes_channels_is_left_out(name):
    torch.manual_seed(0)
    f,why = mixing[name]
    u = holds(around(f if isinstance(f, nn.Module) else Fn(f)).eval(), images(), {'0':why})
    assert set(u.sizes)=={'2'}

constants = dict(sigmoid=nn.Sigmoid, softplus=nn.Softplus, cos=lambda: Fn(torch.cos),
                 bn=lambda: nn.BatchNorm2d(16, affine=False))
@pytest.mark.parametrize('name', constants)
def test_what_sends_a_constant_competes_and_is_known(name):
    u = holds(around(constants[name]()).eval(), images())
    assert u.constant=={'0'} and set(u.sizes)=={'0','2'}

odd = dict(
    twice=(Twice, images, {}), c2f=(C2f, images, {}), squeeze=(Squeeze, images, {}),
    c2f_sizes=(lambda: C2f(True), images, {'':'split_with_sizes'}),
    spatial=(Spatial, images, {'a':unclear, 's':unclear}),
    eca=(Eca, images, {'a':unclear, 'c':unclear}), words=(Words, tokens, {'e':opaque, 'l2':moves}),
    two_in=(TwoInTwoOut, lambda: (torch.randn(3,6), torch.randn(3,4)), {}),
    attention=(Attention, lambda: (torch.randn(2,5,6),), {'i':'MultiheadAttention', 'a':'heads cannot go'}),
    encoder=(lambda: nn.Sequential(nn.Linear(6,16),
                                   nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 1),
                                   nn.Linear(16,3)), lambda: (torch.randn(2,5,6),), {'0':ln, 'linear2':ln, 'self_attn':'heads cannot go'}),
    lstm=(lambda: Recurrent(nn.LSTM), tokens, {'e':'LSTM', 'r':opaque}),
    gru=(lambda: Recurrent(nn.GRU), tokens, {'e':'.', 'r':opaque}),
    collab=(lambda: EmbeddingDotBias(8, 20, 30), lambda: (torch.randint(0, 20, (4,2)),), {}),
    transposed=(lambda: nn.Sequential(conv(3,16), nn.ReLU(), nn.ConvTranspose2d(16,8,2,stride=2), nn.BatchNorm2d(8),
                                      nn.ReLU(),
                                      conv(8,6), nn.Flatten(), nn.Linear(6*256,4)), images, {}),
    grouped_transposed=(lambda: nn.Sequential(conv(3,16), nn.ConvTranspose2d(16,8,2,groups=4), nn.ReLU(), conv(8,4),
                                              nn.Flatten(),
                                              nn.Linear(4*81,3)), images, {'0':'ConvTranspose2d', '1':opaque}),
    grouped=(lambda: nn.Sequential(conv(3,16), nn.ReLU(), conv(16,32,groups=4), nn.ReLU(), conv(32,8,1), nn.Flatten(),
                                   nn.Linear(512,4)),
             images, {}),
    depthwise=(lambda: nn.Sequential(conv(3,16), nn.ReLU(), conv(16,32,groups=16), nn.ReLU(), conv(32,8,1),
                                     nn.Flatten(),
                                     nn.Linear(512,4)), images, {}),
    pixels=(lambda: flat(nn.PixelShuffle(2), 4, 16), images, {'0':unclear}),
    glu=(lambda: flat(nn.GLU(1), 8), images, {'0':unclear}),
    halves=(lambda: flat(Fn(lambda x: x[:,:8]+x[:,8:]), 8), images, {'0':'.'}),
    strided=(lambda: flat(Fn(lambda x: x[:,::2]), 8), images, {'0':'.'}),
    maxout=(lambda: flat(Fn(lambda x: x.unflatten(1, (8,2)).amax(2)), 8), images, {'0':'.'}),
    normed=(lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(conv(3,16)), nn.ReLU(), conv(16,8),
                                  nn.Flatten(),
                                  nn.Linear(512,4)), images, {'0':'parametri|Parametri'}),
    read_by_normed=(lambda: computed(nn.utils.parametrizations.weight_norm), images,
                    {'0':'_WeightNorm', '2':'parametrized', '2.parametrizations.weight':'units are not followed'}),
    read_by_spectral=(lambda: computed(nn.utils.spectral_norm), images, {'0':'2 is parametrized', '2':'2 is parametrized'}),
    read_by_hooked=(lambda: computed(nn.utils.weight_norm), images, {'0':'2 is parametrized', '2':'2 is parametrized'}),
    option_a=(lambda: Of(conv(3,8), conv(8,16), shortcut_a, h=nn.Linear(16,4)), images, {'a':unclear, 'b':unclear}),
    with_input=(lambda: Of(conv(3,8), conv(11,6), with_input, h=nn.Linear(6,4)), images, {}),
    functional=(lambda: linear(f=bottleneck), rows6, {'a':opaque}),
    dropping=(lambda: linear(f=dropping), rows6, {'a':'would change'}),
    noisy=(lambda: linear(f=noisy), rows6, {'a':moves}),
    cast=(lambda: linear(f=cast), rows6, {}), made=(lambda: linear(f=made), rows6, {}),
    checkpointed=(lambda: linear(f=lambda s,
                                 x: s.b(torch.utils.checkpoint.checkpoint(s.a, x, use_reentrant=False).relu())), rows6, {}),
    detached=(lambda: linear(f=lambda s,x: s.b(s.a(x).detach().relu())), rows6, {'':opaque}),
    by_keyword=(lambda: linear(f=lambda s,x: s.b(input=s.a(input=x).relu())), rows6, {}),
    gated=(lambda: linear(f=lambda s,x: s.b(s.a(x)*s.g(x).sigmoid()), g=nn.Linear(6,10)), rows6, {}),
    bytes=(lambda: Of(conv(3,8), nn.Linear(8,3), lambda s,x: s.b(s.a(x.float()/255).relu().mean((2,3)))),
           lambda: (torch.randint(0, 255, (2,3,8,8), dtype=torch.uint8),), {}),
    one_d=(lambda: nn.Sequential(nn.Conv1d(3,8,3), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8,6,3), nn.ReLU(),
                                 nn.AdaptiveMaxPool1d(1),
                                 nn.Flatten(), nn.Linear(6,2)), lambda: (torch.randn(2,3,12),), {}),
    three_d=(lambda: nn.Sequential(nn.Conv3d(1,8,3), nn.BatchNorm3d(8), nn.ReLU(), nn.Conv3d(8,6,3),
                                   nn.AdaptiveAvgPool3d(1),
                                   nn.Flatten(), nn.Linear(6,2)), lambda: (torch.randn(2,1,6,6,6),), {}),
    last=(lambda: around(nn.ReLU()).to(memory_format=torch.channels_last),
          lambda: (images()[0].to(memory_format=torch.channels_last),), {}))
@pytest.mark.parametrize('name', odd)
def test_odd_nets(name):
    torch.manual_seed(0)
    m,xb,left = odd[name]
    holds(m().eval(), xb(), left)

def test_inputs_and_outputs_that_are_dicts():
    d = dict(a=torch.randn(3,6).double(), b=torch.randn(3,4).double())
    u = holds(OfDict(), (d,), forward=lambda m,xb: m({k:v.to(next(m.parameters()).dtype) for k,v in xb[0].items()}))
    assert set(u.sizes)=={'a'} and u.numel==10

hugging = dict(gpt2=dict(n_embd=16, n_layer=2, n_head=4, n_positions=8, vocab_size=20, use_cache=False, bos_token_id=0,
                         eos_token_id=0),
               bert=dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24,
                         vocab_size=20))
@pytest.mark.parametrize('name', hugging)
def test_transformers(name):
    "Hidden neurons and heads; streams are left out"
    t = pytest.importorskip('transformers', reason=need.format('transformers'))
    torch.manual_seed(0)
    k = dict(gpt2='GPT2', bert='Bert')[name]
    m = getattr(t, f'{k}Model')(getattr(t, f'{k}Config')(**hugging[name])).eval()
    u = holds(m, tokens(), {'':'.'}, n=1)
    assert not any('understood' in v for v in u.left.values()) and 'LayerNorm mixes channels' in u.left.values()
    heads,hidden = dict(gpt2=('attn','c_fc'), bert=('self','intermediate'))[name]
    assert sum(g.endswith(heads) and n==4 for g,n in u.sizes.items())==2 and sum(hidden in g for g in u.sizes)==2
    assert len(u.sizes)==4

def test_gpt2_that_looks_at_another_text_keeps_those_heads():
    "Its cross attention makes queries in a layer of their own"
    t = pytest.importorskip('transformers', reason=need.format('transformers'))
    torch.manual_seed(0)
    c = t.GPT2Config(**hugging['gpt2'], add_cross_attention=True)
    m = t.GPT2Model(c).eval()
    def call(m, xb):
        o = torch.linspace(-1, 1, 48, dtype=next(m.parameters()).dtype).view(1, 3, 16)
        return m(xb[0], encoder_hidden_states=o.repeat(len(xb[0]), 1, 1))
    u = holds(m, tokens(), {'':'.'}, call, n=1)
    assert [g for g in u.sizes if 'attn' in g or 'attention' in g]==['h.0.attn','h.1.attn']

def test_a_unet_says_what_of_it_can_go():
    from fastai.vision.learner import create_body
    from fastai.vision.models.unet import DynamicUnet
    torch.manual_seed(0)
    m = DynamicUnet(create_body(resnet18(weights=None), pretrained=False), 2, (32,32)).eval()
    u = holds(m, images(side=32), {'':'.'}, n=1)
    assert u.sizes

def test_swin_says_what_of_it_can_go():
    m = tv.SwinTransformer([4,4], 16, [1,1], [2,2], [4,4], num_classes=4).eval()
    u = holds(m, images(side=32), {'':'.'}, n=1)
    assert all('mlp' in g for g in u.sizes) and u.sizes

@pytest.mark.parametrize('kind', ['language','classifier'])
def test_awd_lstm_is_left_out_by_name(kind):
    from fastai.text.models.core import get_language_model,get_text_classifier
    from fastai.text.models.awdlstm import awd_lstm_lm_config,awd_lstm_clas_config
    cfg = dict(emb_sz=8, n_hid=10, n_layers=1)
    if kind=='language': m = get_language_model(AWD_LSTM, 20, {**awd_lstm_lm_config, **cfg})
    else: m = get_text_classifier(AWD_LSTM, 20, 3, config={**awd_lstm_clas_config, **cfg})
    u = checked_units(channel_units(m.eval(), tokens(long=72)), m, tokens(long=72))
    assert any('LSTM' in why for why in u.left.values()) and set(u.sizes)<={'1.layers.0.2'}

# --- looking changes nothing

def look(m):
    ps = [(n,p.data_ptr(),p._version,p.requires_grad,p.grad) for n,p in m.named_parameters()]
    hooks = [(len(o._forward_hooks),len(o._forward_pre_hooks),len(o._backward_hooks)) for o in m.modules()]
    return ps,[(n,b._version) for n,b in m.named_buffers()],[o.training for o in m.modules()],hooks,torch.get_rng_state().tolist()

@pytest.mark.parametrize('training', [True,False])
def test_finding_units_changes_nothing(training):
    m = around(nn.Sequential(nn.BatchNorm2d(16), nn.Dropout(), nn.ReLU())).train(training)
    m[0].weight.requires_grad_(False)
    xb,was = images(),look(m)
    u = checked_units(channel_units(m, xb), m, xb)
    without(m, u, u.ones())
    assert look(m)==was and torch.get_default_dtype()==torch.float32

@pytest.mark.parametrize('how', ['frozen','all_frozen','compiled','parallel','bfloat16','no_grad','one_item'])
def test_the_same_units_of_other_states(how):
    m,xb = around(nn.BatchNorm2d(16)),images(1 if how=='one_item' else 2)
    was = checked_units(channel_units(m, images()), m, images())
    for p in m.parameters(): p.requires_grad_(how not in ('all_frozen',) and (how!='frozen' or p.ndim<4))
    new = dict(compiled=torch.compile, parallel=nn.DataParallel, bfloat16=lambda m: m.bfloat16()).get(how, lambda m: m)(m)
    if how=='bfloat16': xb = tuple(o.bfloat16() for o in xb)
    with torch.set_grad_enabled(how!='no_grad'): u = checked_units(channel_units(new, xb), new, xb)
    assert u.sizes==was.sizes and u.left==was.left and u.constant==was.constant
    assert [p.as_dict() for p in u.parts]==[p.as_dict() for p in was.parts]

def test_one_item_tells_a_constant_from_what_moves():
    "One item looks the same everywhere"
    m,xb = linear(f=lambda s,x: s.b(s.a(x).roll(1, 1))),(torch.randn(1,6),)
    u = checked_units(channel_units(m, xb), m, xb)
    assert not u.sizes and moves in u.left['a']

def test_a_scripted_model_is_refused():
    with pytest.raises(ValueError, match='the model is scripted'):
        channel_units(torch.jit.script(around(nn.ReLU())), images())
