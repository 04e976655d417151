"Write README.md from nbs/index.ipynb; with --check, only say whether it is up to date"
import os,re,sys
from pathlib import Path
import nbformat
from fastcore.nbio import read_nb,nb2str,mk_cell
from nbconvert import MarkdownExporter
from nbdev.config import get_config
from nbdev.processors import FilterDefaults

os.chdir(Path(__file__).resolve().parent.parent)
cfg = get_config()
class Readme(FilterDefaults):
    "nbdev's processors, less those that run code or link symbols to the site"
    without = 'add_show_docs','exec_show_docs','add_links','insert_warning'
    def base_procs(self): return [p for p in super().base_procs() if p.__name__ not in self.without]

_call = re.compile(r'^:::\s*\{\.callout-(\w+)[^}]*\}\s*\n+(?:#+\s+([^\n]*)\n+)?(.*?)^:::[ \t]*$', re.M|re.S)
def alert(m):
    body = (f'**{m[2]}**\n\n' if m[2] else '')+m[3].strip()
    return '\n'.join(['> [!'+m[1].upper()+']']+[('> '+l).rstrip() for l in body.splitlines()])

def tidy_text(c):
    "Links from the root of the repository, and GitHub's kind of notes; doors are a list"
    c.source = re.sub(r'^:::[ ]*\{\.doors\}\n(.*?)^:::[ \t]*$', r'\1', c.source, flags=re.M|re.S)
    c.source = re.sub(r'\]\((?!\w+:|/|#)([^)]+)\)', rf']({cfg.nbs_path.name}/\1)', _call.sub(alert, c.source))

def tidy_code(c):
    "What the directives of a cell leave out"
    def says(k): return re.search(rf'^#\|\s*{k}:\s*false', c.source, re.M)
    figs = dict(re.findall(r'^#\|\s*fig-(alt|cap):\s*"?(.*?)"?\s*$', c.source, re.M))
    if figs: c.metadata['alt'] = figs.get('alt', figs.get('cap'))
    silent,gone,blind = says('output'),says('include'),says('echo')
    if silent or gone: c.outputs = []
    c.source = '' if gone or blind else re.sub(r'^#\|.*\n?', '', c.source, flags=re.M).strip()

def tidy(c):
    c.metadata = {}
    if c.cell_type=='markdown': tidy_text(c)
    elif c.cell_type=='code': tidy_code(c)
    return c

def read():
    "The notebook as nbdev shows it, its title and its line on top"
    nb = read_nb(cfg.nbs_path/cfg.readme_nb)
    Readme()(nb)
    head = f"# {nb.frontmatter_['title']}\n\n{nb.frontmatter_.get('description','')}"
    nb.cells = [mk_cell(head.strip(),'markdown'), *[tidy(c) for c in nb.cells if c.cell_type!='raw']]
    nb.metadata['language_info'] = {'name':'python'}
    return nb

def plain(body, nb):
    "Markdown whose pictures say what they show, without styles, empty cells and needless lines"
    def alt(m): return f"![{nb.cells[int(m[2])].metadata.get('alt','')}]({m[1]})"
    body = re.sub(r'!\[\w*\]\((README_files/index_(\d+)_\d+\.\w+)\)', alt, body)
    body = re.sub(r'<style scoped>.*?</style>\n?', '', body, flags=re.S)
    body = re.sub(r'^```python\n\s*```\n', '', body, flags=re.M)
    return re.sub(r'\n{3,}', '\n\n', '\n'.join(l.rstrip() for l in body.splitlines())).strip()+'\n'

def make():
    "Name → bytes of README.md and its pictures"
    os.environ['IN_TEST'] = '1'
    nb = read()
    where = {'output_files_dir':'README_files','unique_key':'index'}
    body,res = MarkdownExporter().from_notebook_node(nbformat.reads(nb2str(nb),4), where)
    return {'README.md':plain(body, nb).encode(), **res['outputs']}

def main(check='--check' in sys.argv):
    new = make()
    have = [p for p in [Path('README.md'), *Path('README_files').glob('*')] if p.exists()]
    old = {p.as_posix():p.read_bytes() for p in have}
    if check: return sys.exit(0 if old==new else 'README.md is not what nbs/index.ipynb makes: run `make readme`')
    for n in old.keys()-new.keys(): Path(n).unlink()
    for n,b in new.items():
        (p := Path(n)).parent.mkdir(exist_ok=True)
        p.write_bytes(b)
if __name__=='__main__': main()
