"Build the site: stage nbs/ as MyST notebooks through nbdev's own processors, run Sphinx over them, check every link"
import os,re,shutil,subprocess,sys
from collections import Counter
from pathlib import Path
from symbols import asked,cfg,exported,missing,modname,names,retarget,role,root
from fastcore.nbio import read_nb,write_nb,mk_cell
from nbdev.config import nbpath2html
from nbdev.doclinks import nbglob
from cards import Site
from links import check
from markup import code,markdown
from mentions import Lookup,papers
from ways import contents,rooms,sidebar,stem,storey_page,storeys,told

src,out = cfg.doc_path/'src', Path(os.environ.get('OUT', cfg.doc_path/'html')).resolve()

# --- a notebook as a page

def page_of(p): return nbpath2html(p.relative_to(cfg.nbs_path)).with_suffix('.ipynb')
def title(nb): return nb.frontmatter_.get('title','')

def translated(nb, here):
    "Its cells in MyST's syntax; those that a page leaves out are gone"
    for c in nb.cells:
        if c.cell_type=='markdown': c.source = markdown(c.source, here)
        elif c.cell_type=='raw' or (c := code(c)) is None: continue
        yield c

def stage(p):
    "The notebook that Sphinx reads"
    nb = read_nb(p)
    Lookup.page = page_of(p).with_suffix('').as_posix()
    try:
        Site()(nb)
        cells = list(translated(nb, p.parent))
    except Exception as e: sys.exit(f'{p}: {type(e).__name__}: {e}')
    fm = nb.frontmatter_
    lead = f":::{{div}} lead\n{papers(fm['description'])}\n:::" if fm.get('description') else ''
    top = told(p) if p.stem!='index' else ''
    nb.cells = [mk_cell(f"# {fm.get('title', p.stem)}\n\n{lead}\n\n{top}", 'markdown'), *cells]
    return nb

# --- the table of modules, and the sidebar

def has_row(n, kind):
    "Not the methods of a class that is in the table itself"
    return kind!='member' and not (kind=='patch' and n.rpartition('.')[0] in exported)
def of_module(p): return [n for n,_,kind in names if modname(n)==p.stem and has_row(n, kind)]
def row(p, nb):
    "A module in the table: what it is for, and its public names"
    about = (nb.frontmatter_.get('description') or '').replace('|', r'\|')
    links = ', '.join(f"{{py:obj}}`{n.split('.',2)[2]} <{n}>`" for n in of_module(p))
    return f"| [{title(nb)}]({p}) | {about} | {links} |"
def modules(pages):
    mods = {p:nb for p,nb in pages.items() if p.parent==Path() and p.stem not in ('all','index')}
    rows = [row(p, nb) for p,nb in mods.items() if of_module(p)]
    head = ':::{table}',':class: modules','','| Module | What for | Public names |','|:--|:--|:--|'
    return '\n'.join([*head,*rows,':::'])

def twice_in(titles): return {t for t,n in Counter(titles.values()).items() if n>1}

def ways(nbs, pages, extra):
    "The page of all pages, a page a storey, and the sidebar"
    titles = {p:title(pages[page_of(p)]) for p in nbs}
    abouts = {p:pages[page_of(p)].frontmatter_.get('description') or '' for p in nbs}
    twice = twice_in(titles)
    texts = {'contents':contents(nbs, titles, abouts)}
    for k,ps in rooms(nbs).items(): texts[f'library/{storeys[k][0]}'] = storey_page(k, ps, titles, abouts, twice)
    for k,t in texts.items():
        (src/k).parent.mkdir(parents=True, exist_ok=True)
        (src/f'{k}.md').write_text(t, encoding='utf-8')
    return [mk_cell(t, 'markdown') for t in sidebar(nbs, titles, twice, [p.stem.lower() for p in extra])]

# --- staging and building

def copy_images():
    for p in cfg.nbs_path.rglob('*'):
        if p.suffix not in ('.png','.jpg','.svg','.gif','.webp') or not p.is_file(): continue
        (dst := src/p.relative_to(cfg.nbs_path)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(p, dst)

def write(pages):
    "All pages are known now, and so is what can be linked to"
    for rel,nb in pages.items():
        for c in nb.cells:
            if c.cell_type=='markdown': c.source = role.sub(retarget, c.source)
        (src/rel).parent.mkdir(parents=True, exist_ok=True)
        write_nb(nb, src/rel)

def stage_all():
    shutil.rmtree(src, ignore_errors=True)
    nbs = sorted(nbglob(as_path=True), key=lambda p: (len(p.parts),p))
    for p in nbs:
        for c in read_nb(p).cells: asked.update(re.findall(r'^show_doc\(([\w.]+)', c.source, re.M))
    pages = {page_of(p):stage(p) for p in nbs}
    if bad := missing():
        head = 'These public names have no docstring (a value: no comment behind or above it), or no page shows them:'
        sys.exit('\n  '.join([head,*bad]))
    if (p := Path('all.ipynb')) in pages: pages[p].cells.append(mk_cell(modules(pages), 'markdown'))
    copy_images()
    extra = [p for o in ('CHANGELOG','CONTRIBUTING') if (p := cfg.config_path/f'{o}.md').exists()]
    pages[Path('index.ipynb')].cells += ways(nbs, pages, extra)
    write(pages)
    for p in extra: shutil.copy(p, src/f'{p.stem.lower()}.md')
    return nbs

def take_along(nbs):
    "The notebooks themselves, to download"
    for p in nbs:
        (dst := out/'notebooks'/f'{stem(p)}.ipynb').parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(p, dst)

def sphinx():
    opts = ['-q','-W','--keep-going','-E','-b','html','-d',cfg.doc_path/'doctrees','-c',root/'docs',src,out]
    return subprocess.run([sys.executable,'-m','sphinx',*opts,*sys.argv[1:]]).returncode

def main():
    os.environ['IN_TEST'] = '1'
    nbs = stage_all()
    shutil.rmtree(out, ignore_errors=True)
    if rc := sphinx(): sys.exit(rc)
    take_along(nbs)
    n,bad = check(out)
    if bad: sys.exit('\n  '.join(['The site is built, but:',*bad]))
    print(f'{n} pages in {os.path.relpath(out)}')
if __name__=='__main__':
    if sys.version_info>=(3,11): main()
    else: print(f'The site was NOT built: Sphinx 9 needs Python 3.11 or newer, this is {sys.version.split()[0]}')
