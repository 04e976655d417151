"What competes and what does not: by the rule, in nets of many makers, named in full"
import re
import pytest,timm,torchvision
from torch.nn.utils import parametrizations,prune
from fastai.collab import EmbeddingDotBias,EmbeddingNN
from fastai.tabular.model import TabularModel
from nets import *
from fastai_lottery.core import role_by_name
from fastai_lottery.scopes import check_lengths,lengths_of

def pattern(names):
    "The names with `#` for each number, once each"
    return sorted({re.sub(r'\d+', '#', n) for n in names})

def out(m, **kwargs):
    "Of matrices and all else of two or more dimensions: why they do not compete, by pattern"
    df = competing(m, **kwargs)
    df = df[(df['shape'].map(len)>1)&~df.competes]
    return {re.sub(r'\d+', '#', n):re.sub(r'\d+', '#', w) for n,w in df.why.items()}

def left(m, **kwargs): return {re.sub(r'\d+', '#', n):w for n,w in left_out(m, **kwargs).items()}

def matrices(m):
    "Share of the matrices' elements that competes, tied ones once"
    df = competing(m)
    return df.share[df.competes].sum()/df.share[df['shape'].map(len)>1].sum()

def weights(m, *types):
    "Names of the weights of linear and convolutional layers, found by torch's classes alone"
    types = types or (nn.Linear, nn.modules.conv._ConvNd)
    return [f'{n}.weight' if n else 'weight' for n,o in m.named_modules() if isinstance(o, types)]

# --- nets of torchvision and timm, of which nothing but linear layers and convolutions should compete

def vision(name): return torchvision.models.get_model(name, weights=None)
def vit(): return torchvision.models.VisionTransformer(16, 8, 2, 2, 32, 64, num_classes=4)
def attention(n): return [f'encoder.layers.encoder_layer_{i}.self_attention.in_proj_weight' for i in range(n)]

plain = 'resnet18','mobilenet_v3_small','efficientnet_b0','densenet121','vgg11_bn','googlenet'
timm_plain = ('resnet18','resnetv2_50','mobilenetv3_small_050','efficientnet_b0','regnetx_002','repvgg_a0',
              'mixer_s32_224',
              'hrnet_w18_small')

@pytest.mark.parametrize('make,name', [*((vision,n) for n in plain), *((timm.create_model,n) for n in timm_plain)],
    ids=lambda o: o if isinstance(o, str) else '')
def test_plain_nets_compete_whole(make, name):
    with torch.device('meta'): m = make(name)
    assert prunable(m)==weights(m)
    assert out(m)=={} and left_out(m)=={} and matrices(m)==1

def test_regnet_of_torchvision():
    m = vision('regnet_y_400mf')        # asks its tensors for numbers as it is made
    assert prunable(m)==weights(m) and left_out(m)=={}

table,scale = 'positional','gain'
swin,beit = (f'{o}.attn.relative_position_bias_table' for o in ('features.#.#','blocks.#'))
two = dict(cls_token='token', dist_token='token')
levit = [f'stages.#.{o}.attention_biases' for o in ('blocks.#.attn','downsample.attn_downsample')]
botnet = [f'stages.#.#.self_attn.pos_embed.{o}_rel' for o in ('height','width')]
@pytest.mark.parametrize('make,name,want,said', [
    (vision, 'convnext_tiny', {'features.#.#.layer_scale':scale}, []),
    (vision, 'swin_t', {swin:table}, [swin]),
    (vision, 'swin_v2_t', {'features.#.#.attn.logit_scale':scale}, []),
    (timm.create_model, 'vit_tiny_patch16_224', {'cls_token':'token', 'pos_embed':table}, ['pos_embed']),
    (timm.create_model, 'vit_base_patch16_dinov3', {'cls_token':'token', 'reg_token':'token'}, ['reg_token']),
    (timm.create_model, 'deit_tiny_distilled_patch16_224', {**two, 'pos_embed':table}, ['pos_embed']),
    (timm.create_model, 'beit_base_patch16_224', {'cls_token':'token', beit:table}, [beit]),
    (timm.create_model, 'levit_128s', dict.fromkeys(levit, table), levit),
    (timm.create_model, 'botnet26t_256', dict.fromkeys(botnet, table), botnet),
    (timm.create_model, 'resmlp_12_224',
     {f'{n}.{o}':scale for n in ('norm','blocks.#.norm#') for o in ('alpha','beta')}, []),
    (timm.create_model, 'xcit_nano_12_p8_224', {'cls_token':'token', 'blocks.#.attn.temperature':scale}, []),
    (timm.create_model, 'poolformer_s12', {}, []),
])
def test_trap_30_nets_with_tables_and_gains(make, name, want, said):
    with torch.device('meta'): m = make(name)
    assert prunable(m)==weights(m) and out(m)==want
    assert left(m)=={n:want[n] for n in said}, 'vectors need no word, matrices do'

def test_trap_30_vit_of_torchvision():
    m = vit()
    want = {'class_token':'token', 'encoder.pos_embedding':table}
    assert set(prunable(m))=={*weights(m), *attention(2)}
    assert out(m)==want and left_out(m)=={'encoder.pos_embedding':table}
    assert prunable(m,
                    include='encoder.pos_embedding')==['encoder.pos_embedding'], 'by its exact name a matrix comes in'
    assert left_out(m, exclude='encoder.pos_embedding')=={}

def test_recurrent_net_of_timm():
    with torch.device('meta'): m = timm.create_model('sequencer2d_s')
    rnn = [n for n in named_weights(m) if '.rnn_' in n and '.weight_' in n]
    assert set(prunable(m))=={*weights(m), *rnn} and len(rnn)>100 and left_out(m)=={}

def test_bare_matrix_of_timm():
    "SwiftFormer's attention has a column of its own, and multiplies by it"
    with torch.device('meta'): m = timm.create_model('swiftformer_xs')
    assert pattern(set(prunable(m))-set(weights(m)))==['stages.#.blocks.#.attn.w_g'] and set(out(m).values())=={scale}

# --- standardised convolutions: a 0 in the kernel is none in use

def test_trap_65_standardised_convolutions_are_left_out_by_name():
    with torch.device('meta'): m = timm.create_model('dm_nfnet_f0')
    std = [n for n,o in m.named_modules() if 'StdConv' in type(o).__name__]
    assert len(std)>50 and set(prunable(m))==set(weights(m))-{f'{n}.weight' for n in std}
    assert left_out(m)=={f'{n}.weight':'standardised in use' for n in std}
    assert set(prunable(m, types=weight_types))==set(weights(m))|{f'{n}.gain' for n in std}, 'the old set'

def test_a_zero_in_a_standardised_kernel_is_none_in_use():
    from timm.layers import StdConv2d
    torch.manual_seed(0)
    c,x = StdConv2d(2, 3, 1),torch.tensor([1.,0.]).view(1,2,1,1)
    with torch.no_grad():
        c.weight[:,0] = 0
        assert (c(x)!=0).any(), 'else it could compete'

# --- transformers

def hf():
    return pytest.importorskip('transformers', reason="needs transformers: pip install 'fastai_lottery[text]'")
extra = pytest.mark.extra

def gpt2(n=2):
    t = hf()
    ends = dict(bos_token_id=0, eos_token_id=0)
    return t.GPT2LMHeadModel(t.GPT2Config(n_embd=16, n_layer=n, n_head=2, vocab_size=50, n_positions=12, **ends))

@extra
def test_trap_29_gpt2():
    "Its layers are `Conv1D`, a class of its own; its head is tied to the words"
    m = gpt2()
    block = 'attn.c_attn','attn.c_proj','mlp.c_fc','mlp.c_proj'
    layers = [f'transformer.h.{i}.{o}.weight' for i in range(2) for o in block]
    assert prunable(m)==['transformer.wte.weight', *layers]
    assert out(m)=={'transformer.wpe.weight':'positional', 'lm_head.weight':'tied to transformer.wte.weight'}
    assert prunable(m, types=weight_types)==['transformer.wte.weight','transformer.wpe.weight'], 'the old set'
    n = {k:p.numel() for k,p in named_weights(m).items()}
    assert matrices(m)==pytest.approx(sum(n[k] for k in prunable(m))/(sum(n[k] for k in prunable(m))+12*16))

@extra
def test_gpt2_trains_pruned():
    "Half of all that competes, the tied words with it"
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.m = gpt2(1)
        def forward(self, x): return self.m(x).logits[:,-1]
    learn = learner(Last, data(shape=(6,), ints=50), cbs=LotteryCallback(types=None))
    learn.fit_lottery(1, 1, amount=.5)
    lot,m = learn.lottery,learn.model.m
    assert list(lot.masks)==[f'm.{n}' for n in prunable(m)] and lot.masks.density==.5 and leaks(learn)==0
    assert m.lm_head.weight is m.transformer.wte.weight and not lot.masks['m.transformer.wte.weight'].all()

@extra
def test_bert():
    t = hf()
    m = t.BertForSequenceClassification(t.BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, vocab_size=50, max_position_embeddings=12))
    emb = 'bert.embeddings.'
    assert set(prunable(m))=={*weights(m), f'{emb}word_embeddings.weight', f'{emb}token_type_embeddings.weight'}
    assert out(m)=={f'{emb}position_embeddings.weight':'positional'}==left(m)

@extra
def test_t5():
    t = hf()
    m = t.T5ForConditionalGeneration(t.T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=50))
    heads = ['lm_head.weight','encoder.embed_tokens.weight','decoder.embed_tokens.weight']
    relative = [f'{o}.block.#.layer.#.SelfAttention.relative_attention_bias.weight' for o in ('decoder','encoder')]
    assert set(prunable(m))=={'shared.weight', *weights(m)}-set(heads) and pattern(left_out(m))==relative
    assert out(m)=={**{n:'tied to shared.weight' for n in heads if n in named_weights(m)},
                    **{n:table for n in relative}}
    assert competing(m).share.sum()==pytest.approx(1)

@extra
@pytest.mark.parametrize('name,kw,bare', [
    ('Mixtral', dict(intermediate_size=32, num_key_value_heads=2, num_local_experts=2),
        ['layers.#.mlp.experts.down_proj','layers.#.mlp.experts.gate_up_proj','layers.#.mlp.gate.weight']),
    ('Llama', dict(intermediate_size=32), [])])
def test_trap_29_experts_are_bare_matrices(name, kw, bare):
    t = hf()
    model,config = (getattr(t, f'{name}{o}') for o in ('Model','Config'))
    m = model(config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=50, bos_token_id=0,
                     eos_token_id=0, **kw))
    assert pattern(set(prunable(m))-set(weights(m)))==['embed_tokens.weight', *bare] and out(m)=={}

@extra
def test_a_logarithm_is_no_weight():
    "Mamba's A_log: 0 is 1 there"
    t = hf()
    m = t.MambaModel(t.MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=50, state_size=4))
    assert set(prunable(m))=={*weights(m), 'embeddings.weight'} and left_out(m)=={'layers.0.mixer.A_log':'logarithm'}

# --- nets of torch and fastai

def test_transformer_of_torch():
    m = nn.Transformer(8, 2, 1, 2, 16)
    heads = [n for n in named_weights(m) if n.endswith('in_proj_weight')]
    assert set(prunable(m))=={*weights(m), *heads} and len(heads)==5 and out(m)=={}

@pytest.mark.parametrize('make', [nn.GRU, nn.LSTM, nn.RNN])
def test_recurrent(make):
    m = make(4, 3, num_layers=2, bidirectional=True)
    want = [f'weight_{o}_l{i}{d}' for i in (0,1) for d in ('','_reverse') for o in ('ih','hh')]
    assert prunable(m)==want and set(competing(m).why)=={'weight','bias'}
    assert prunable(m, bias=True)==list(named_weights(m))

def test_projected_lstm(): assert prunable(nn.LSTM(4, 6, proj_size=2))==['weight_ih_l0','weight_hh_l0','weight_hr_l0']

def test_awd_lstm():
    "`WeightDropout` keeps the matrices of an LSTM; the words are an embedding under two names"
    m = AWD_LSTM(20, 8, 10, 2)
    lstms = [f'rnns.{i}.{o}' for i in (0,1) for o in ('weight_hh_l0_raw','module.weight_ih_l0')]
    assert prunable(m)==['encoder.weight', *lstms] and out(m)=={'encoder_dp.emb.weight':'tied to encoder.weight'}
    assert prunable(m, types=weight_types)==prunable(m)

def test_tabular():
    m = TabularModel([(5,3),(7,4)], 2, 2, [10,6])
    assert prunable(m)==['embeds.0.weight','embeds.1.weight', *weights(m)]
    assert set(competing(m).why)=={'weight','norm','bias'} and left_out(m)=={}

def test_collab():
    "`u_bias` and `i_bias` are embeddings with one column"
    m = EmbeddingDotBias(4, 10, 12)
    assert prunable(m)==['u_weight.weight','i_weight.weight']
    assert out(m)=={f'{o}_bias.weight':'bias' for o in 'ui'} and left_out(m)=={}
    assert prunable(m, bias=True)==list(named_weights(m))
    assert prunable(m, types=weight_types)==list(named_weights(m)), 'the old set'
    m = EmbeddingNN([(10,3),(12,4)], layers=[6])
    assert prunable(m)==['embeds.0.weight','embeds.1.weight', *weights(m)]

@pytest.mark.parametrize('name', [n for n in zoo])
def test_zoo(name):
    model,_,inc,some = zoo[name]
    m = model()
    assert set(some)<=set(prunable(m, include=inc)) and left_out(m)=={}
    assert set(prunable(m))==set(prunable(m, include=inc)), 'bare matrices need no word'

# --- layers and parameters of one's own

class Conv1D(nn.Module):
    def __init__(self, n_in, n_out):
        super().__init__()
        self.weight,self.bias = nn.Parameter(torch.randn(n_in,n_out)),nn.Parameter(torch.zeros(n_out))
class ScaleNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight,self.bias = nn.Parameter(torch.ones(4,4)),nn.Parameter(torch.zeros(4))
class LearnedPositionEncoding(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(5,4))
class Own(nn.Module):
    def __init__(self):
        super().__init__()
        def p(*shape): return nn.Parameter(torch.randn(shape))
        self.mix,self.column,self.kernel,self.pos = p(4,4),p(4,1),p(2,1,3,3),p(1,5,4)
        self.gamma,self.shift = p(4,1,1),p(1,1,4)
        self.steps = nn.Parameter(torch.zeros(2,2, dtype=torch.long), requires_grad=False)
        self.a,self.norm,self.places = Conv1D(4,3),ScaleNorm(),nn.Sequential(LearnedPositionEncoding())
        self.position_wise = nn.ModuleDict(dict(ff=Conv1D(3,3), pos_proj=nn.Linear(3,3)))
        self.experts = nn.ParameterList([torch.randn(3,4), torch.randn(3,4)])

def test_trap_29_own_layers_and_bare_parameters():
    m = Own()
    assert prunable(m)==['mix','column','kernel','a.weight','position_wise.ff.weight','position_wise.pos_proj.weight',
        'experts.0','experts.1']
    df = competing(m)
    assert list(df.index)==list(named_weights(m)) and list(df.columns)==['shape','numel','share','competes','why']
    want = dict(gamma='gain', shift='one dimension', pos='positional', steps='not floating point')
    want |= {'norm.weight':'norm by its name', 'norm.bias':'norm by its name', 'a.bias':'bias',
             'places.0.weight':'positional'}
    assert df.why[list(want)].to_dict()==want
    assert left_out(m)=={n:df.why[n] for n in ('pos','steps','norm.weight','places.0.weight')}
    biases = 'a.bias','position_wise.ff.bias','position_wise.pos_proj.bias'
    assert prunable(m, bias=True)==[n for n in named_weights(m) if n in prunable(m) or n in biases]

said = dict(positional='wpe pos_emb posEmbed rel_pos_h position_wise', token='cls_token mask_token',
            bias='in_proj_bias user_bias',
    gain='layer_scale_1 alpha', logarithm='A_log')
silent = 'ppe positionwise cls_head token_embedding tokens multiscale login debiased wte weight emb'
@pytest.mark.parametrize('name,role', [(n,k) for k,ns in {**said, None:silent}.items() for n in ns.split()])
def test_words_in_names(name, role):
    assert role_by_name(name)==role_by_name(f'{name}.weight')==role_by_name(f'layers.3.{name}.0.emb')==role
    assert role_by_name(f'{name}.head')==role_by_name(f'{name}.2.proj.weight')==None, 'what is within says more'

# --- weights that are made of other tensors

new,old = parametrizations,nn.utils
made = dict(
    weight_norm=(new.weight_norm, 'parametrizations.weight.original1'),
    spectral_norm=(new.spectral_norm, 'parametrizations.weight.original'),
    old_weight_norm=(old.weight_norm, 'weight_v'), old_spectral_norm=(old.spectral_norm, 'weight_orig'))
layers = dict(linear=lambda: nn.Linear(6,5), conv=lambda: nn.Conv2d(3,5,3))
def batch(layer): return torch.randn(2, *({'linear':(6,), 'conv':(3,4,4)}[layer]))

@pytest.mark.filterwarnings('ignore:.*weight_norm.*:FutureWarning')
@pytest.mark.parametrize('layer', layers)
@pytest.mark.parametrize('how', made)
def test_trap_29_a_weight_that_is_made_is_zero_where_it_is_pruned(how, layer):
    "What is pruned in the tensor is 0 in the weight that is used"
    f,name = made[how]
    torch.manual_seed(0)
    m = nn.Sequential(f(layers[layer]()))
    assert prunable(m)==[f'0.{name}'] and left_out(m)=={}
    p = named_weights(m)[f'0.{name}']
    keep = torch.rand(p.shape)<.5
    keep.view(5,-1)[:,0] = True
    with torch.no_grad(): p.mul_(keep)
    m.eval()(batch(layer))                  # the old ones are made before each forward pass
    w = m[0].weight
    assert torch.equal(w!=0, keep) and torch.isfinite(w).all()

@pytest.mark.filterwarnings('ignore:.*weight_norm.*:FutureWarning')
@pytest.mark.parametrize('how', ['weight_norm','old_weight_norm'])
def test_trap_30_lengths_of_weight_norm_are_gains(how):
    f,name = made[how]
    m = nn.Sequential(f(nn.Linear(6,5)), nn.Linear(5,2))
    gain = '0.'+name.replace('original1','original0').replace('_v','_g')
    assert competing(m).why[gain]=='gain' and prunable(m)==[f'0.{name}','1.weight']
    assert prunable(m, bias=True)==[n for n in named_weights(m) if n!=gain]
    assert prunable(nn.Sequential(f(nn.Linear(6,5), dim=None)))==[f'0.{name}']

def test_trap_65_a_rotation_is_left_out_by_name():
    m = nn.Sequential(new.orthogonal(nn.Linear(5,5)), nn.Linear(5,2))
    n = '0.parametrizations.weight.original'
    assert prunable(m)==['1.weight'] and left_out(m)=={n:'parametrized: Orthogonal'}
    with torch.no_grad(): m[0].parametrizations.weight.original[0] = 0
    assert (m[0].weight[0]!=0).any(), 'else it could compete'
    assert left_out(m, exclude='0')=={} and prunable(m, include=['1',n])==[n,'1.weight']

class Half(nn.Module):
    def __init__(self):
        super().__init__()
        self.low_rank = nn.Parameter(torch.randn(5,2))
    def forward(self, w): return w/2+1

def test_parametrizations_of_ones_own():
    "What they do with a 0 nobody can tell, nor what they are for"
    m = nn.Sequential(nn.Linear(6,5))
    nn.utils.parametrize.register_parametrization(m[0], 'weight', Half())
    nn.utils.parametrize.register_parametrization(m[0], 'bias', Half())
    own = [f'0.parametrizations.{o}.0.low_rank' for o in ('weight','bias')]
    assert left_out(m)==dict.fromkeys(['0.parametrizations.weight.original',*own], 'parametrized: Half')
    assert prunable(m, include=own)==own
    m = nn.Sequential(new.weight_norm(nn.Linear(6,5)))
    nn.utils.parametrize.register_parametrization(m[0], 'weight', Half())
    assert set(left_out(m).values())=={'parametrized: Half'}
    m = nn.Sequential(new.spectral_norm(nn.Linear(6,5)))
    assert left_out(m, types=nn.Conv2d)==left_out(m)=={}
    m = nn.Sequential(new.orthogonal(nn.Linear(5,5)))
    assert left_out(m, types=nn.Linear) and not left_out(m,
                                                         types=nn.Conv2d), 'who asks for linear layers has not left it out'

def test_torch_own_pruning():
    m = nn.Sequential(nn.Linear(6,5))
    prune.l1_unstructured(m[0], 'weight', .5)
    assert prunable(m)==['0.weight_orig']

def net_of(how, layer):
    torch.manual_seed(0)
    return nn.Sequential(made[how][0](layers[layer]()))

def gives_nan(how, layer, name, mask):
    net = net_of(how, layer)
    with torch.no_grad(): named_weights(net)[name].mul_(mask)
    return bool(net.eval()(batch(layer)).isnan().any())

@pytest.mark.filterwarnings('ignore:.*weight_norm.*:FutureWarning')
@pytest.mark.filterwarnings('ignore::fastai_lottery.scopes.EmptyLayerWarning')
@pytest.mark.parametrize('how', made)
@pytest.mark.parametrize('layer', layers)
def test_what_is_divided_by_its_length_keeps_one(how, layer):
    "A row by weight norm, the whole by spectral norm; else the net gives nan, as a plain prune of these scores shows"
    m,n,dim = net_of(how, layer),f'0.{made[how][1]}',None if 'spectral' in how else 0
    s = {n:named_weights(m)[n].detach().abs().clone(), 'other':torch.full((400,), 9.)}
    s[n].view(5,-1)[1] *= 1e-3
    if dim is None: s[n] *= 1e-3
    ones,go = Masks.ones(s),s[n].numel() if dim is None else s[n].numel()//2
    dims = lengths_of(m)
    assert dims=={n:dim}
    plain,kept = (make_masks(s, ones, go/ones.numel, lengths=o) for o in (None,dims))
    assert gives_nan(how, layer, n, plain[n]) and not gives_nan(how, layer, n, kept[n]) and plain.n_kept==kept.n_kept
    check_lengths(kept, dims)
    check_lengths(plain, dims, held={n:s[n]})
    with pytest.raises(ValueError, match=r'no weight is left in 1 slice\(s\) of .* divided by its length: 0/0 is nan'):
        check_lengths(plain, dims)
    with pytest.raises(ValueError, match='Prune less, or leave the layer out'):
        make_masks(s, ones, .999, {'other':0}, lengths={n:0})

def test_rows_keep_one_under_every_scope():
    g = torch.Generator().manual_seed(0)
    s = dict(a=torch.rand(8,12,generator=g), b=torch.rand(3,6,generator=g))
    s['a'][2] *= 1e-3
    for dim,gone in ((0,2),(1,None)):
        for scope in (global_,local,erk,'2:4',{'a':.9}):
            new = make_masks(s, Masks.ones(s), .45, scope, lengths=dict(a=dim, lost=0))
            assert new['a'].any(1-dim).all() and new.n_kept==make_masks(s, Masks.ones(s), .45, scope).n_kept
    assert not make_masks(s, Masks.ones(s), .45)['a'][2].any(), 'else this shows nothing'

# --- include and exclude

def test_parameters_names_globs_modules_and_mixtures():
    m = mlp()
    every = ['0.weight','2.weight','4.weight']
    assert prunable(m, include=list(m.parameters()))==prunable(m, include=m.parameters())==every
    for o in (m[0].weight, '0.weight', m[0], ['0'], '0*'): assert prunable(m, include=o)==['0.weight']
    assert prunable(m, include=[m[0].weight, '2.w*', m[4]])==every==prunable(m, include=('0','2','4'))
    assert prunable(m, exclude=[m[0].weight, '2.w*'])==['4.weight']==prunable(m, exclude={m[0], m[2].weight})
    assert prunable(m, include=list(m.parameters()), bias=True)==list(named_weights(m))
    w = nn.DataParallel(m)
    assert prunable(w, include=list(w.parameters()))==every==prunable(w, include=w)
    assert prunable(w, exclude=m[0])==every[1:]

def test_a_list_of_all_parameters_chooses_nothing_in_particular():
    "A habit from torch's own pruning; so does a list of all matrices. One parameter that was named is meant"
    m = vit()
    for o in (list(m.parameters()), [p for p in m.parameters() if p.ndim>1]): assert prunable(m, include=o)==prunable(m)
    assert prunable(m, include=[m.encoder.pos_embedding, 'heads'])==['encoder.pos_embedding','heads.head.weight']
    want = [n for n in prunable(m) if n.startswith('encoder')]
    assert prunable(m, include='encoder*')==want, 'a glob chooses among what competes'
    norm = nn.Sequential(nn.LayerNorm((3,4)), nn.Linear(4,2))
    assert prunable(norm, include=['0.weight','1'])==['0.weight','1.weight']
    assert prunable(norm, include=['0','1'])==['1.weight']

@pytest.mark.parametrize('arg', ['include','exclude'])
@pytest.mark.parametrize('what,kind',
                         [(3,'int'), ([3],'int'), (dict(a=1),'dict'), ([('0.weight',1)],'tuple'), (b'0','int'),
    (torch.ones(2),'Tensor'), ([torch.ones(2)],'Tensor'), ([None],'NoneType'), (nn.Linear,'type')], ids=str)
def test_anything_else_is_an_error(arg, what, kind):
    want = rf'`{arg}` should hold names, globs such as .layers\.\*., modules or parameters of the model; got {kind}'
    with pytest.raises(TypeError, match=want):
        prunable(mlp(), **{arg:what})

@pytest.mark.parametrize('arg', ['include','exclude'])
@pytest.mark.parametrize('what', [nn.Linear(8,12), mlp()[0].weight], ids=['module','parameter'])
def test_parts_of_another_model(arg, what):
    want = rf'(Linear|Parameter of shape \(12, 8\)) in `{arg}` is no part of the model.*copy'
    with pytest.raises(ValueError, match=want):
        prunable(mlp(), **{arg:what})

def test_types():
    m = conv_bn()
    assert prunable(m, types=nn.BatchNorm2d)==['1.weight','4.weight'] and prunable(m, types=[nn.Linear])==['7.weight']
    assert competing(m, types=nn.Linear).why.tolist()==['not of `types`']*8+['weight','bias']
    for bad in ('Linear', nn.Linear(2,2), [nn.Linear,'x'], 3):
        with pytest.raises(TypeError, match='`types` should be classes of modules such as nn.Linear, or None'):
            prunable(m, types=bad)

# --- tied weights

def test_tied_weights_are_chosen_and_left_by_any_name():
    m = Tied()
    assert prunable(m)==['enc.weight','head.weight'] and competing(m).why['dec.weight']=='tied to enc.weight'
    assert prunable(m, include='dec')==['dec.weight']
    assert competing(m, include='dec').why['enc.weight']=='not in `include`'
    for o in ('enc','dec',m.dec,m.enc.weight): assert prunable(m, exclude=o)==['head.weight']
    df = competing(m)
    assert df.share.sum()==pytest.approx(1)
    assert df.share['dec.weight']==0 and df.share['enc.weight']==64/sum(p.numel() for p in m.parameters())
    df = competing(m, include='dec')
    assert df.share['enc.weight']==0 and df.share['dec.weight']>0, 'it counts where it competes'

def test_a_module_under_two_names():
    m = nn.ModuleDict(dict(a=nn.Linear(3,3)))
    m['b'] = m['a']
    assert prunable(m)==['a.weight'] and prunable(m, include='b')==['b.weight']
    with pytest.raises(ValueError, match='nothing prunable.*competing'): prunable(m, exclude='b')

def test_a_table_that_is_also_a_layer():
    "Tied to what the rule takes for something else, a weight competes under its other name"
    m = nn.ModuleDict(dict(wpe=nn.Embedding(5,4), head=nn.Linear(4,5)))
    m['head'].weight = m['wpe'].weight
    assert prunable(m)==['head.weight'] and competing(m).why['wpe.weight']=='positional'

# --- the set before there was a rule

def of_classes(m, include=(), bias=False):
    "Parameters of `weight_types` but for biases, and bare matrices that `include` names, as it was"
    res,seen = [],set()
    for mn,mod in m.named_modules():
        for pn,p in mod.named_parameters(recurse=False):
            n = f'{mn}.{pn}'.lstrip('.')
            ours = any(isinstance(o, weight_types) for o in (mod, getattr(mod,'module',None)))
            ok = (bias or 'bias' not in pn) if ours else n in include and p.ndim>1
            if ok and id(p) not in seen and (not include or n in include):
                seen.add(id(p))
                res.append(n)
    return res

before = dict(
    resnet=lambda: vision('resnet18'), vit=vit, awd=lambda: AWD_LSTM(20,8,10,2), collab=lambda: EmbeddingDotBias(4,10,12),
    tabular=lambda: TabularModel([(5,3)], 2, 2, [6]), transformer=lambda: nn.Transformer(8,2,1,1,16), own=Own,
    rotation=lambda: nn.Sequential(new.orthogonal(nn.Linear(5,5)), nn.Linear(5,2)), **{k:o[0] for k,o in zoo.items()})
@pytest.mark.parametrize('name', before)
def test_types_bring_the_old_set_back(name):
    m = before[name]()
    assert prunable(m, types=weight_types)==of_classes(m)
    assert prunable(m, types=weight_types, bias=True)==of_classes(m, bias=True)
    every = [n for n,p in named_weights(m).items() if p.is_floating_point()]
    assert prunable(m, types=weight_types, include=every)==of_classes(m, every)

# --- a lottery with weight norm

def with_lengths():
    return nn.Sequential(new.weight_norm(nn.Linear(8,12)), nn.ReLU(), new.spectral_norm(nn.Linear(12,4)))

def test_a_sparse_lottery_with_lengths_stays_finite():
    "At a density at which rows would be empty; the masks of all rounds keep one weight in each"
    learn = learner(with_lengths)
    learn.fit_lottery(1, 6, amount=.3)
    lot,dims = learn.lottery,lengths_of(learn.model)
    w = lot.masks['0.parametrizations.weight.original1']
    assert list(lot.masks)==list(dims)==prunable(learn.model) and w.any(1).all() and w.sum()<24 and leaks(learn)==0
    assert all(math.isfinite(o['valid_loss']) and bool(torch.isfinite(learn.model[0].weight).all()) for o in lot.rounds)

@pytest.mark.parametrize('criterion', ['random','snip','synflow'])
def test_other_criteria_keep_one_in_a_row(criterion):
    learn = learner(with_lengths)
    masks = learn.prune(.85, criterion)
    assert masks['0.parametrizations.weight.original1'].any(1).all() and masks.n_kept==144-round(.85*144)

def test_masks_that_would_give_nan_are_an_error():
    learn = learner(with_lengths)
    learn.fit(1)
    empty = {n:torch.zeros_like(m) for n,m in learn.lottery.masks.items()}
    with pytest.raises(ValueError, match='slice.*0/0 is nan'): learn.lottery.set_masks(Masks(empty))
    assert learn.lottery.masks.density==1, 'nothing was put on'
