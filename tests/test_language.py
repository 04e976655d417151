"""Language models and attention: texts and what counting predicts, heads that look at all places alike, what survives of each part,
gradient clipping of tickets, the encoder's ticket in a classifier; nets of transformers are marked `extra`"""
import math,pickle
from pathlib import Path
import numpy as np,pytest,torch
from torch import nn
from fastai.callback.training import GradientClip
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.torch_core import set_seed
import fastai_lottery.texts as texts
from fastai_lottery.attention import attentions_in,plot_survival,survival,uniform,uniform_heads,unknown_attentions
from fastai_lottery.callback import LotteryCallback
from fastai_lottery.core import generator,named_weights,prunable
from fastai_lottery.language import counts,language,reads
from fastai_lottery.masks import Masks
from fastai_lottery.resets import fresh,state
from fastai_lottery.rounds import *
from fastai_lottery.texts import *
from fastai_lottery.writers import *

root = Path(__file__).resolve().parent.parent
extra = pytest.mark.extra

def small(): return lm_gpt(width=16, layers=2, context=32)
def learner(model=None, cb=None, **kw):
    set_seed(0)
    dls,m = verses(seed=0, device='cpu', parts=(.1,.2)),small() if model is None else model
    cb = cb or LotteryCallback(exclude='pos' if hasattr(m, 'pos') else None)
    return Learner(dls, m, metrics=BitsPerCharacter(), cbs=cb, **kw)

def quiet(learn, f):
    with learn.no_bar(), learn.no_logging(): return f()

# --- texts

def test_tiny_shakespeare_is_read_from_the_folder(tmp_path, monkeypatch):
    (tmp_path/'text').mkdir()
    (tmp_path/'text'/'tinyshakespeare.txt').write_text('To be, or not to be. '*200)
    assert shakespeare_text(tmp_path).startswith('To be,')
    monkeypatch.setenv('FASTAI_LOTTERY_DATA', str(tmp_path))
    dls = tiny_shakespeare(context=8, bs=4, seed=0)
    assert [len(o.dataset) for o in dls]==[(3780-1)//8,(210-1)//8,(210-1)//8]

def test_a_missing_file_is_downloaded_and_checked(tmp_path, monkeypatch):
    asked = []
    def get(url, f, sha, progress):
        asked.append((url, sha))
        Path(f).write_text('To be')
    monkeypatch.setattr(torch.hub, 'download_url_to_file', get)
    assert shakespeare_text(tmp_path)=='To be' and asked[0][1]==texts._sha
    with pytest.raises(FileNotFoundError, match='`verses` needs neither'): shakespeare_text(tmp_path/'..', download=False)

def test_the_sample_is_the_beginning_and_of_known_letters():
    t = verses_text()
    assert t.startswith('First Citizen:\nBefore we proceed') and len(t)==9785 and set(t)<=set(letters) and len(letters)==65

def test_a_window_is_followed_by_the_next():
    ds = verses(seed=0).train_ds
    assert torch.equal(ds.y[:-1,-1], ds.x[1:,0]) and torch.equal(ds.y[:,:-1], ds.x[:,1:])

@pytest.mark.parametrize('n', [1,2,3,5])
def test_ngrams_are_probabilities(n):
    m = NGram(encoded(verses_text())[:3000], n)
    for ctx in ('First Citize','zzZ','xq'):
        t = encoded(ctx).numpy()
        p = [2**m.log2p(np.r_[t, c])[-1] for c in range(65)]
        assert math.isclose(sum(p), 1, rel_tol=1e-9) and min(p)>0

def test_longer_contexts_predict_better_up_to_a_point():
    b = ngrams(verses(seed=0), 3).valid
    assert b[1]>b[2]>b[3]

def test_bits_are_the_loss_in_bits():
    learn = learner()
    r = learn.evaluate()
    assert math.isclose(r['bits'], r['valid_loss']/math.log(2), rel_tol=1e-6)

# --- the nets

def test_nothing_is_seen_of_what_comes_later():
    m,x = small().eval(), torch.randint(65, (2,32))
    y = x.clone()
    y[:,20:] = 0
    torch.testing.assert_close(m(x)[:,:20], m(y)[:,:20])

@pytest.mark.parametrize('make', [small, lambda: lm_awd(width=16, hidden=24)], ids=['gpt','awd'])
def test_a_lottery_holds_and_draws_anew(make):
    m = make()
    learn = learner(m)
    quiet(learn, lambda: learn.fit_lottery(1, rounds=1, amount=.5, lr_max=1e-2, seed=0))
    r = quiet(learn, lambda: learn.fit_ticket(learn.lottery.ticket(1), 1, reset='random_reinit', lr_max=1e-2, seed=0))
    masks = learn.lottery.masks
    assert r['density']==.5 and all((w[~masks[n]]==0).all() for n,w in named_weights(m, masks).items())

def test_a_reset_draws_as_the_start_was_drawn():
    m = lm_gpt()
    w = fresh(m, generator(0))
    for n in prunable(m): assert .8<w[n].std()/state(m)[n].std()<1.25, n

def test_hidden_states_do_not_go_from_window_to_window():
    m,x = lm_awd(width=16, hidden=24).eval(), torch.randint(65, (3,9))
    assert torch.equal(m(x), m(x))

def test_dropout_can_be_left_out():
    "fastai's own weight dropout fails with exactly 0"
    m,x = lm_awd(width=16, hidden=24, drop_mult=0).train(), torch.randint(65, (3,9))
    assert torch.equal(m(x), m(x))

# --- gradient clipping

@pytest.mark.parametrize('make', [small, lambda: lm_awd(width=16, hidden=24)], ids=['gpt','awd'])
def test_clipping_counts_only_living_weights(make):
    "The norm that is clipped is that of the kept weights' gradients, and of what does not compete"
    seen = []
    class Norm(GradientClip):
        order = GradientClip.order-1
        def before_step(self):
            on = self.learn.lottery.masks
            ps = named_weights(self.learn.model)
            own = {n:p for n,p in ps.items() if p.grad is not None and (n in on or id(p) not in tied)}
            alive = {id(p):(p.grad*on[n] if n in on else p.grad) for n,p in own.items()}
            every = {id(p):p.grad for p in ps.values() if p.grad is not None}
            def norm(gs): return float(torch.stack([g.norm() for g in gs]).norm())
            seen.append((norm(every.values()), norm(alive.values())))
    m = make()
    learn = learner(m)
    learn.prune(.7)
    tied = {id(p) for p in named_weights(m, learn.lottery.masks).values()}
    quiet(learn, lambda: learn.fit(1, 1e-2, cbs=[Norm(), GradientClip(.1)]))
    assert seen and all(math.isclose(a, b, rel_tol=1e-5) for a,b in seen)

# --- heads

def mha():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed,self.attn,self.out = nn.Embedding(65, 16),nn.MultiheadAttention(16, 4, batch_first=True),nn.Linear(16, 65)
        def forward(self, x):
            mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
            x = self.embed(x)
            return self.out(self.attn(x, x, x, attn_mask=mask, need_weights=False)[0])
    return Block()

def test_queries_of_0_look_at_all_before_alike():
    m,x = small().eval(), torch.randint(65, (2,32))
    attn,seen = m.blocks[0].attn,[]
    attn.proj.register_forward_pre_hook(lambda o, xs: seen.append(xs[0]))
    attn.qkv.register_forward_hook(lambda o, xs, y: seen.append(y))
    a = attentions_in(m)[0]
    with torch.no_grad(), uniform(m, [(a,1)]): m(x)
    v = seen[0][...,32:]
    mean = v.cumsum(1)/torch.arange(1, 33)[:,None]
    torch.testing.assert_close(seen[1][...,4:8], mean[...,4:8])
    assert not torch.allclose(seen[1][:,2:,:4], mean[:,2:,:4], atol=1e-7)

def test_a_bias_of_queries_is_0_as_well():
    m,x = mha().eval(),torch.randn(2, 8, 16)
    nn.init.normal_(m.attn.in_proj_bias)
    [a] = attentions_in(m)
    with torch.no_grad():
        with uniform(m, [(a,None)]): w = m.attn(x, x, x)[1]
        torch.testing.assert_close(w, torch.full_like(w, 1/8))
        assert not torch.allclose(m.attn(x, x, x)[1], w)

class Fused(nn.Module):
    "Causal attention of 4 heads of 4 whose queries, keys and values come from one layer, in an order of its own"
    def __init__(self, groups, kv, qkv, proj, **own):
        super().__init__()
        self.num_heads,self.head_dim,self.shape,self.qkv_ = 4,4,(groups,4//groups,kv//groups),qkv
        setattr(self, qkv, nn.Linear(16, 4*(4+2*kv)))
        setattr(self, proj, nn.Linear(16, 16))
        self.proj_ = proj
        for k,v in own.items(): setattr(self, k, v)
    def forward(self, x):
        (b,t,_),(g,q,kv) = x.shape,self.shape
        o = getattr(self, self.qkv_)(x).view(b, t, g, q+2*kv, 4)
        q,k,v = (i.flatten(2, 3).transpose(1, 2) for i in o.split([q,kv,kv], 3))
        k,v = (i.repeat_interleave(4//i.shape[1], 1) for i in (k,v))
        mask = torch.ones(t, t, dtype=torch.bool).triu(1)
        self.seen = (q@k.transpose(2, 3)).masked_fill(mask, -math.inf).softmax(-1)
        return getattr(self, self.proj_)((self.seen@v).transpose(1, 2).flatten(2))

# groups of rows, heads of keys and values, names of the layers, what the module says of itself
orders = dict(neox=(4, 4, 'query_key_value', 'dense'), timm=(1, 4, 'qkv', 'proj'),
              falcon=(2, 2, 'query_key_value', 'dense', dict(new_decoder_architecture=True, num_kv_heads=2)),
              multi_query=(1, 1, 'c_attn', 'c_proj', dict(multi_query=True)), bigcode=(4, 4, 'c_attn', 'c_proj', dict(multi_query=False)),
              phi3=(1, 2, 'qkv_proj', 'o_proj'), maxvit=(4, 4, 'qkv', 'proj', dict(head_first=True)),
              minigpt=(1, 4, 'c_attn', 'c_proj'))
def fused(name):
    *args,own = orders[name] if isinstance(orders[name][-1], dict) else (*orders[name],{})
    torch.manual_seed(0)
    return Fused(*args, **own)

class InBlock(nn.Module):
    def __init__(self, attn):
        super().__init__()
        self.embed,self.attn,self.out = nn.Embedding(65, 16),attn,nn.Linear(16, 65)
    def forward(self, x): return self.out(self.attn(self.embed(x)))

@pytest.mark.parametrize('name', orders)
def test_queries_are_found_in_whatever_order_rows_come(name):
    m,x = fused(name),torch.randn(2, 8, 16)
    m(x)
    was = m.seen
    [a] = attentions_in(m)
    even = torch.ones(8, 8).tril()/torch.arange(1, 9)[:,None]
    for h in (*range(4),None):
        with torch.no_grad(), uniform(m, [(a,h)]): m(x)
        for i in range(4):
            want = even.expand(2, 8, 8) if h in (i,None) else was[:,i]
            torch.testing.assert_close(m.seen[:,i], want)
    df = survival(Masks.ones(named_weights(m, prunable(m))), m)
    kv = orders[name][1]
    assert dict(zip(df.part, df.total))==dict(q=256, k=64*kv, v=64*kv, out=256)

timms = dict(
    beit=lambda t: (t.beit.Attention(16, 4, qkv_bias=True), 16),                       # biases of their own
    swin_v2=lambda t: (t.swin_transformer_v2.WindowAttention(16, (3,3), 4), 9),
    eva=lambda t: (t.eva.EvaAttention(16, 4, qk_norm=False, scale_norm=False), 16),
    tiny_vit=lambda t: (t.tiny_vit.Attention(16, 4, 4, attn_ratio=1, resolution=(3,3)), 9),    # head by head
    efficientformer=lambda t: (t.efficientformer.Attention(16, 4, 4, attn_ratio=2, resolution=3), 9),    # with wider values
    cait=lambda t: (t.cait.ClassAttn(16, 4), 16),
    pvt=lambda t: (t.pvt_v2.Attention(16, 4), 16),                                      # keys and values in one
    crossvit=lambda t: (t.crossvit.CrossAttention(16, 4), 16),
    vit=lambda t: (t.vision_transformer.Attention(16, 4, qkv_bias=True), 16))

@pytest.mark.parametrize('name', timms)
def test_no_key_matters_in_an_attention_of_timm_whose_queries_are_0(name):
    import timm
    torch.manual_seed(0)
    m,n = timms[name](timm.models)
    m.eval()
    for p in m.parameters(): nn.init.normal_(p)
    x = torch.randn(2, n, 16)
    def out(): return m(x, (4,4)) if name=='pvt' else m(x)
    [a] = attentions_in(m)
    k = a.parts['k'].of(named_weights(m)[a.parts['k'].name])
    with torch.no_grad():
        was = out()
        with uniform(m, [(a,None)]):
            even = out()
            k.neg_()
            assert torch.equal(out(), even)
        assert a.n==4 and not torch.allclose(out(), was, atol=.1)    # without it they matter
        k.neg_()
        assert torch.equal(out(), was)

def test_attentions_that_are_not_called_so_are_told():
    import timm
    heads = timm.models.convit.GPSA(16, 4)
    xca,conv = timm.models.xcit.XCA(16, 4),timm.models.maxxvit.Attention2d(32)
    levit = timm.models.levit.Attention(16, 4, 4, use_conv=False)    # its matrices lie three modules deep
    assert unknown_attentions(nn.ModuleList([heads, xca, conv, levit]), [])==['0','1','2','3']
    from fastai.layers import SelfAttention
    assert unknown_attentions(nn.ModuleList([SelfAttention(8)]), [])==['0']

@pytest.mark.parametrize('name', orders)
def test_each_order_passes_the_check_by_effect(name):
    learn = learner(InBlock(fused(name)))
    assert len(quiet(learn, lambda: uniform_heads(learn)))==4+1+1

def test_an_order_that_is_not_what_its_names_say_is_refused():
    m = InBlock(Fused(4, 4, 'qkv', 'proj'))    # head by head, though `qkv` says thirds
    for p in m.attn.parameters(): nn.init.normal_(p)
    learn = learner(m)
    was = state(m)
    with pytest.raises(ValueError, match='do not look at all places alike.*: attn. '): quiet(learn, lambda: uniform_heads(learn))
    assert all(torch.equal(v, was[k]) for k,v in state(m).items())

def test_a_query_that_is_moved_behind_its_layer_is_refused():
    class Moved(Fused):
        def forward(self, x):
            o,l = super().forward,self.qkv
            shift = torch.cat([torch.ones(16), torch.zeros(32)])
            h = l.register_forward_hook(lambda m, a, y: y+shift)
            try: return o(x)
            finally: h.remove()
    m = InBlock(Moved(1, 4, 'qkv', 'proj'))
    for p in m.attn.parameters(): nn.init.normal_(p)
    learn = learner(m)
    with pytest.raises(ValueError, match='loss still depends on their keys: attn. '): quiet(learn, lambda: uniform_heads(learn))

def test_attentions_of_unknown_layout_are_told():
    class OddAttention(nn.Module):
        def __init__(self):
            super().__init__()
            self.a,self.b = nn.Linear(16, 48),nn.Linear(48, 16)
        def forward(self, x): return self.b(self.a(x).relu())
    m = InBlock(nn.Sequential(OddAttention(), fused('timm'), nn.Linear(16, 16)))
    assert unknown_attentions(m, attentions_in(m))==['attn.0']
    learn = learner(m)
    with pytest.warns(UserWarning, match='how they keep their heads is not known: attn.0$'):
        df = quiet(learn, lambda: uniform_heads(learn))
    assert len(df)==6
    parts = survival(Masks.ones(named_weights(m, prunable(m))), m).groupby('part').total.sum()
    assert parts['attention']==2*16*48 and parts['q']==256
    learn = learner(InBlock(OddAttention()))
    with pytest.raises(ValueError, match='no attention that is known.* Of another layout: attn$'): uniform_heads(learn)

def test_what_counts_heads_for_its_layers_is_no_attention():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.n_heads,self.embed,self.layers = 4,nn.Embedding(65, 16),nn.ModuleList([InBlock(fused('timm'))])
            self.head = nn.Linear(16, 4)
    class AttentionNet(Encoder): pass
    for make in (Encoder, AttentionNet):
        m = nn.Sequential(make())
        assert not unknown_attentions(m, attentions_in(m))
        df = survival(Masks.ones(named_weights(m, prunable(m))), m)
        assert set(df.part)=={'embedding','q','k','v','out','feed-forward'}

def test_what_looks_at_channels_is_no_attention_over_places():
    class XCA(Fused): pass
    assert attentions_in(nn.ModuleList([XCA(1, 4, 'qkv', 'proj')]))==[]

def test_data_that_differ_each_time_are_told():
    m = InBlock(fused('timm'))
    learn,n = learner(m),iter(range(10**6))
    learn.loss_func = lambda y, t: CrossEntropyLossFlat()(y, t)*(1+next(n)%7)
    with pytest.warns(UserWarning, match='not the same twice'): quiet(learn, lambda: uniform_heads(learn, single=False))

@pytest.mark.parametrize('make', [small, mha], ids=['gpt','torch'])
def test_looking_at_heads_changes_nothing(make):
    learn = learner(make(), LotteryCallback())
    learn.prune(.5)
    was,rng = state(learn.model),torch.get_rng_state()
    df = quiet(learn, lambda: uniform_heads(learn))
    n = len(attentions_in(learn.model))
    assert len(df)==5*n+1 and torch.equal(rng, torch.get_rng_state())
    assert all(torch.equal(v, was[k]) for k,v in state(learn.model).items())

def test_an_error_leaves_the_weights_as_they_were():
    m = small()
    was = state(m)
    with pytest.raises(KeyError), uniform(m, [(a,None) for a in attentions_in(m)]): raise KeyError
    assert all(torch.equal(v, was[k]) for k,v in state(m).items())

def test_what_has_no_attention_is_refused():
    learn = learner(lm_awd(width=16, hidden=24), LotteryCallback())
    with pytest.raises(ValueError, match='no attention that is known'): uniform_heads(learn)

# --- what survives

@pytest.mark.parametrize('make,parts', [(small, 'embedding q k v out feed-forward'), (mha, 'embedding q k v out other'),
    (lambda: lm_awd(width=16, hidden=24), 'embedding recurrent input')], ids=['gpt','torch','awd'])
def test_each_weight_is_in_one_part(make, parts):
    m = make()
    ws = named_weights(m, prunable(m))
    masks = Masks({n:torch.rand(w.shape, generator=generator(0, n))<.3 for n,w in ws.items()})
    df = survival(masks, m)
    assert df.kept.sum()==masks.n_kept and df.total.sum()==masks.numel and set(df.part)==set(parts.split())
    assert plot_survival(df) is not None

def test_layers_of_an_lstm_are_told_apart():
    m = lm_awd(width=16, hidden=24)
    df = survival(Masks.ones(named_weights(m, prunable(m))), m)
    assert df[df.part=='recurrent'].layer.tolist()==[0,1]

# --- an encoder's ticket in a classifier

def test_an_encoder_takes_its_ticket_along():
    from fastai.text.all import AWD_LSTM,awd_lstm_clas_config,awd_lstm_lm_config,get_language_model,get_text_classifier
    from fastai_lottery.tickets import Ticket
    from fastai_lottery.transfer import transfer
    size = dict(emb_sz=8, n_hid=12, n_layers=2, pad_token=0)
    lm = get_language_model(AWD_LSTM, 65, {**awd_lstm_lm_config, **size})
    clas = get_text_classifier(AWD_LSTM, 65, 2, config={**awd_lstm_clas_config, **size})
    masks = Masks({n:torch.rand(w.shape)<.5 for n,w in named_weights(lm, prunable(lm)).items()})
    t = transfer(encoder_ticket(Ticket(masks, state(lm))), clas, exclude='1')
    assert {n.replace('0.module.', '0.', 1) for n in t.masks}==set(masks)
    k = '0.module.rnns.0.weight_hh_l0_raw'
    head = '1.layers.0.2.weight'
    assert torch.equal(t.weights[k], state(lm)['0.rnns.0.weight_hh_l0_raw'])
    assert torch.equal(t.weights[head], state(clas)[head])
    other = Ticket(Masks(dict(a=torch.ones(2,2).bool())), dict(a=torch.ones(2,2)))
    with pytest.raises(ValueError, match="encoder at '0.'"): encoder_ticket(other)

# --- where words end

words = 'the quality of mercy is not strained\nit droppeth as the gentle rain from heaven '

def test_a_text_without_its_spaces_has_all_else():
    "Each window, and the spaces put back where the targets say"
    dls = spaces_dls(words*40, context=16, bs=4, val_bs=1000, seed=0, device='cpu')
    for dl,part in zip(dls.loaders, np.split(np.array([*words*40]), [int(o*len(words)*40) for o in (.9,.95)])):
        ds,text = dl.dataset,''.join(part).replace('\n', ' ')
        back = ''.join(letters[i-2]+' '*int(k) for i,k in zip(ds.x.flatten(), ds.y.flatten()))
        assert text.lstrip().startswith(back) and len(text)-len(back)<2*16
        assert ds.x.shape==ds.y.shape and ds.x.shape[1]==16 and int(ds.x.min())>1

@pytest.mark.parametrize('n', [0,1,2])
def test_counting_of_neighbours_by_hand(n):
    "In plain Python; where a group is new, the shorter one speaks"
    g = torch.Generator().manual_seed(1)
    text = ''.join('ab c'[i] for i in torch.randint(4, (600,), generator=g))
    dls = spaces_dls(text, context=4, bs=1, val_bs=1000, parts=(.3,.6), seed=0, device='cpu')
    (x,y),(tx,ty) = (map(lambda t: t.flatten().tolist(), (dl.dataset.x, dl.dataset.y)) for dl in (dls.loaders[0], dls.loaders[2]))
    def around(x, i, k): return tuple(x[j] if 0<=j<len(x) else 0 for j in range(i-k, i+k+1))
    def says(i):
        for k in range(n, -1, -1):
            seen = [y[j] for j in range(len(x)) if around(x, j, k)==around(tx, i, k)]
            if seen: return int(2*sum(seen)>len(seen))
        return 0
    right = [says(i)==ty[i] for i in range(len(tx))]
    assert neighbours(dls)['test'][n]==pytest.approx(np.mean(right))

def test_a_text_that_is_too_short_for_spaces_is_told():
    with pytest.raises(ValueError, match="'valid' has 6 characters, and needs 17"):
        spaces_dls(words*3, context=16, bs=1, parts=(.9,.93))
    with pytest.raises(ValueError, match="'train' has 0 characters"): spaces_dls('')
    with pytest.raises(ValueError, match="`context` should be a whole number"): spaces_dls(words, context=0)

@extra
def test_bert_puts_spaces_back():
    "A class for each letter, and more of them right than letters alone tell"
    pytest.importorskip('transformers', reason="needs transformers: pip install 'fastai_lottery[text]'")
    from fastai.metrics import accuracy
    dls = spaces_dls(words*60, context=16, bs=8, seed=0, device='cpu')
    set_seed(0)
    m = bert_tiny(n_out=2, width=32, context=16, each=True, initializer_range=.1, hidden_dropout_prob=0., attention_probs_dropout_prob=0.)
    learn = Learner(dls, m, loss_func=CrossEntropyLossFlat(), metrics=accuracy, cbs=LotteryCallback(exclude='*position_embeddings'))
    rs = quiet(learn, lambda: learn.fit_lottery(3, rounds=1, amount=.5, lr_max=1e-2, seed=0))
    assert m(dls.one_batch()[0]).shape==(8,16,2)
    for r in rs: assert r['accuracy']>neighbours(dls, 0)['valid'][0]+.02

# --- experiments

def test_nothing_is_claimed_of_nets_that_know_less_than_three_letters():
    import pandas as pd
    from fastai_lottery.claims import Figures
    df = pd.DataFrame([dict(arm='dense', round=0, seed=s, es_test_loss=2.) for s in range(3)])
    def ms(bits): return pd.DataFrame([dict(arm='counting', round=0, seed=s, model='trigram', test_bits=bits) for s in range(3)])
    assert reads(Figures(df, ms(2.9))) and not reads(Figures(df, ms(2.8))) and not reads(Figures(df, ms(2.9)[:2]))

def test_nothing_is_claimed_of_a_bert_that_knows_less_than_three_letters():
    import pandas as pd
    from fastai_lottery.claims import Figures
    def of(acc): return pd.DataFrame([dict(arm='dense', round=0, seed=s, es_test_accuracy=acc-.01*s) for s in range(3)])
    ms = pd.DataFrame([dict(arm='counting', round=0, seed=s, model=m, test=t) for s in range(3)
                       for m,t in (('1 each side',.93),('2 each side',.97))])
    assert counts(Figures(of(.96), ms)) and not counts(Figures(of(.94), ms)) and not counts(Figures(of(.96), ms[ms.seed<2]))

@pytest.mark.parametrize('name', ['lm-gpt','lm-awd'])
def test_a_language_model_is_judged_only_where_it_reads(name):
    "A dense net no better than a trigram model: nothing is claimed"
    import pandas as pd
    from fastai_lottery.all import check_claims
    bits = .693147
    def rows(dense): return pd.DataFrame([dict(arm=a, round=k, seed=s, es_test_loss=(b+.01*s*(k+1))*bits) for s in range(4)
                                          for a,k,b in (('dense',0,dense),('ticket',3,2.7),('reinit',3,2.8))])
    ms = pd.DataFrame([dict(arm='counting', round=0, seed=s, model='trigram', test_bits=3.04) for s in range(4)])
    t = check_claims(name, rows(2.6), ms)
    assert len(t)==1 and t.ours.iloc[0].startswith('-0.10') and not len(check_claims(name, rows(3.03), ms))

def test_nets_are_of_the_size_that_is_said():
    nets = {o.name:o.model for o in language}
    def size(n): return sum(p.numel() for p in nets[n]().parameters())
    assert size('lm-gpt')<250_000 and size('lm-awd')<250_000 and 1_000_000<=size('lm-gpt-1m')<1_050_000

def test_a_sweep_measures_what_one_process_measures(tmp_path):
    "Controls and measures are pieces there, which share no memory"
    import pandas as pd
    from fastai_lottery.experiments import measured,play_seed
    from fastai_lottery.presets import preset
    from fastai_lottery.slots import Here
    from fastai_lottery.sweeps import play
    for _ in play('lm-gpt-tiny', tmp_path/'a', replicates=1, executor=Here()): pass
    play_seed(preset('lm-gpt-tiny'), 0, tmp_path/'b'/'seed_00')
    a,b = (measured(tmp_path/o) for o in 'ab')
    assert set(a[a.arm=='heads']['mask'])=={'dense','ticket','reinit','shuffle'}
    pd.testing.assert_frame_equal(a, b)

# --- transformers, and what needs Torch-Pruning

base = dict(vocab_size=65, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24, pad_token_id=0)
short = dict(vocab_size=65, n_embd=16, n_layer=2, n_head=4, n_positions=32)
kinds = dict(
    GPT2=short, GPTBigCode=short, GPTJ=dict(short, rotary_dim=4), GPTNeoX=base, Phi=base, Roberta=base,
    Albert=dict(base, embedding_size=8),
    Bloom=dict(vocab_size=65, hidden_size=16, n_layer=2, n_head=4, pad_token_id=0),
    Falcon=dict(base, multi_query=False), FalconNew=dict(base, new_decoder_architecture=True, num_kv_heads=2), FalconMulti=base,
    Phi3=dict(base, num_key_value_heads=2), Phi3One=dict(base, num_key_value_heads=1), Llama=dict(base, num_key_value_heads=2),
    Qwen3=dict(base, num_key_value_heads=2, head_dim=4), Mpt=dict(vocab_size=65, d_model=16, n_layers=2, n_heads=4),
    DistilBert=dict(vocab_size=65, dim=16, n_layers=2, n_heads=4, hidden_dim=24),
    T5=dict(vocab_size=65, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4, pad_token_id=0),
    DebertaV2=dict(base, relative_attention=True, pos_att_type=['p2c','c2p']))

def of_transformers(kind):
    "A small net of transformers, with weights that are large enough for its keys to matter"
    t = pytest.importorskip('transformers', reason="needs transformers: pip install 'fastai_lottery[text]'")
    name = 'Falcon' if kind.startswith('Falcon') else 'Phi3' if kind=='Phi3One' else kind
    torch.manual_seed(0)
    m = getattr(t, 'T5EncoderModel' if name=='T5' else f'{name}Model')(getattr(t, f'{name}Config')(**kinds[kind])).eval()
    for p in m.parameters(): p.data = p*8 if p.ndim>1 else p+.3*torch.randn(p.shape)
    return m

@extra
@pytest.mark.parametrize('kind', kinds)
def test_attentions_of_transformers(kind):
    m = of_transformers(kind)
    found = attentions_in(m)
    assert len(found)==(1 if kind=='Albert' else 2) and all(a.n==4 for a in found) and not unknown_attentions(m, found)
    df = survival(Masks.ones(named_weights(m, prunable(m))), m)
    assert {'q','k','v','out'}<=set(df.part) and 'attention' not in set(df.part)

@extra
@pytest.mark.parametrize('kind', kinds)
def test_no_key_matters_in_a_transformer_whose_queries_are_0(kind):
    class Says(nn.Module):
        def __init__(self, m):
            super().__init__()
            self.body,self.out = m,nn.Linear(16, 65)
        def forward(self, x): return self.out(self.body(input_ids=x)[0])
    learn = learner(Says(of_transformers(kind)), LotteryCallback(exclude=['out']))
    look = lambda: quiet(learn, lambda: uniform_heads(learn, single=False))
    if kind!='DebertaV2': return look()
    with pytest.raises(ValueError, match='still depends on their keys: body.encoder.layer.0.attention.self, body.enc'): look()

def gpt2():
    t = pytest.importorskip('transformers', reason="needs transformers: pip install 'fastai_lottery[text]'")
    pytest.importorskip('torch_pruning', reason="needs Torch-Pruning: pip install 'fastai_lottery[deploy]'")
    torch.manual_seed(0)
    return Logits(t.GPT2LMHeadModel(t.GPT2Config(vocab_size=65, n_embd=16, n_layer=2, n_head=4, n_positions=32,
                                                 bos_token_id=0, eos_token_id=0)))

@extra
def test_gpt2_heads_are_pruned_as_units():
    "A dead head's columns in each third of `c_attn` and its bias are 0; the rows of `c_proj` read it; `shrink` takes them all out"
    learn = learner(gpt2(), LotteryCallback(units='channels', exclude='*c_fc'))
    quiet(learn, lambda: learn.fit_lottery(1, rounds=1, amount=.5, seed=0))
    lot = learn.lottery
    heads = {g:m for g,m in lot.masks.counted.items() if g.endswith('attn')}
    assert [len(m) for m in heads.values()]==[4,4] and sum(int(m.sum()) for m in heads.values())==4
    ws = named_weights(learn.model)
    for g,alive in heads.items():
        by = ws[f'{g}.c_attn.weight'].detach().view(16, 3, 4, 4)    # inputs, thirds, heads, a head's columns
        assert torch.equal((by!=0).any(3).any(0), alive.expand(3, 4)) and torch.equal((by!=0).all(3).all(0), alive.expand(3, 4))
        assert not ws[f'{g}.c_attn.bias'].detach().view(3, 4, 4)[:,~alive].any() and (ws[f'{g}.c_proj.weight']!=0).any()
    df = survival(lot.masks, learn.model).set_index(['layer','part']).density
    for i,alive in enumerate(heads.values()): assert all(df[i,p]==alive.float().mean() for p in 'qkv')
    assert len(quiet(learn, lambda: uniform_heads(learn)))==2*5+1

@extra
def test_gpt2_scores_each_head_by_all_its_columns():
    from fastai_lottery.coupled import channel_units
    m = gpt2().eval()
    units = channel_units(m, torch.arange(16).view(2, 8))
    w = {n:p.detach() for n,p in m.named_parameters()}
    got = units.pooled({n:w[n].abs() for n in units.scored})
    for g in [o for o in units.sizes if o.endswith('attn')]:
        torch.testing.assert_close(got[g], w[f'{g}.c_attn.weight'].abs().view(16, 3, 4, 4).mean((0,1,3)))

@extra
def test_gpt2_without_its_dead_heads_says_and_writes_the_same():
    import fastai_lottery.shrink    # `Learner.shrink`
    learn = learner(gpt2(), LotteryCallback(units='channels'))
    quiet(learn, lambda: learn.fit_lottery(1, rounds=1, amount=.5, seed=0))
    m,x = learn.model.eval(),learn.dls.valid.one_batch()[0][:2]
    write = dict(attention_mask=torch.ones(2, 8), max_new_tokens=6, do_sample=False, pad_token_id=0)    # with a cache
    alive = [int(m.sum()) for g,m in learn.lottery.masks.counted.items() if g.endswith('attn')]
    with torch.no_grad(): was = m(x)
    wrote = m.model.generate(x[:,:8], **write)
    learn.shrink()
    blocks = m.eval().model.transformer.h
    assert [b.attn.num_heads for b in blocks]==alive and sum(alive)<8
    for b,n in zip(blocks, alive):
        assert b.attn.c_attn.weight.shape==(16, 3*4*n) and b.attn.c_attn.nf==3*4*n and b.attn.c_proj.weight.shape==(4*n, 16)
    with torch.no_grad(): torch.testing.assert_close(m(x), was, atol=1e-5, rtol=1e-4)
    for o in (m,pickle.loads(pickle.dumps(m))): assert torch.equal(o.model.generate(x[:,:8], **write), wrote)
    assert len(quiet(learn, lambda: uniform_heads(learn)))==sum(alive)+2+1
    quiet(learn, lambda: learn.fit(1))

@extra
def test_bert_draws_itself_anew():
    pytest.importorskip('transformers', reason="needs transformers: pip install 'fastai_lottery[text]'")
    m = bert_tiny(width=32)
    w = fresh(m, generator(0))
    for n in prunable(m):
        assert not torch.equal(w[n], state(m)[n]) and .7<w[n].std()/state(m)[n].std()<1.4, n

@extra
@pytest.mark.slow
def test_the_guide_runs_with_all_its_cells():
    import nbformat
    from nbclient import NotebookClient
    p = root/'nbs'/'tutorials'/'17_language.ipynb'
    NotebookClient(nbformat.read(p, 4), timeout=600, resources={'metadata':{'path':str(p.parent)}}).execute()
