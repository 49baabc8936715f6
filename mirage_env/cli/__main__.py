from mirage_env.cli import main

main()
