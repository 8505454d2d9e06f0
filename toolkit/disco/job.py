def main(config, run):
    with run.stage("denoiser"):
        pass
    print(config.network, run.dir)
